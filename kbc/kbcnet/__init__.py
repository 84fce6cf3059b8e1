"""KBCNet, the paper's reference model: ResNet or tiny backbone, cross-scale alignment, centre-pivot 4D decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kbc.kbcnet.config import ModelConfig
    from kbc.kbcnet.matcher import Flow, KBCNet, load
    from kbc.kbcnet.model import Network

__all__ = ["Flow", "KBCNet", "ModelConfig", "Network", "load"]

_WHERE = {"Flow": "matcher", "KBCNet": "matcher", "load": "matcher", "ModelConfig": "config", "Network": "model"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
