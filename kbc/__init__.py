"""kbc: keypoint bounding-box-centred cropping around any semantic matcher.

Importing this package is cheap: neither torch nor OpenCV is loaded before something needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Pair": "types",
    "Match": "types",
    "MatchResult": "types",
    "Box": "geometry",
    "Window": "geometry",
    "KBCConfig": "config",
    "KBCMatcher": "pipeline",
    "wrap": "pipeline",
    "Matcher": "matchers.protocol",
    "SimilarityMatcher": "matchers.protocol",
    "as_matcher": "matchers.function",
    "from_features": "matchers.features",
    "from_flow": "matchers.networks",
    "from_correlation": "matchers.networks",
    "load_matcher": "matchers.registry",
    "available_matchers": "matchers.registry",
    "transfer": "labelling",
    "Exemplar": "labelling",
    "load_image": "images",
    "crop_pair": "cropping",
    "KBCError": "errors",
    "InputError": "errors",
    "DataError": "errors",
    "MatcherError": "errors",
    "MissingDependencyError": "errors",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 (strings all; one list, in _HOME)

if TYPE_CHECKING:
    from kbc.config import KBCConfig as KBCConfig
    from kbc.cropping import crop_pair as crop_pair
    from kbc.errors import DataError as DataError
    from kbc.errors import InputError as InputError
    from kbc.errors import KBCError as KBCError
    from kbc.errors import MatcherError as MatcherError
    from kbc.errors import MissingDependencyError as MissingDependencyError
    from kbc.geometry import Box as Box
    from kbc.geometry import Window as Window
    from kbc.images import load_image as load_image
    from kbc.labelling import Exemplar as Exemplar
    from kbc.labelling import transfer as transfer
    from kbc.matchers.features import from_features as from_features
    from kbc.matchers.function import as_matcher as as_matcher
    from kbc.matchers.networks import from_correlation as from_correlation
    from kbc.matchers.networks import from_flow as from_flow
    from kbc.matchers.protocol import Matcher as Matcher
    from kbc.matchers.protocol import SimilarityMatcher as SimilarityMatcher
    from kbc.matchers.registry import available_matchers as available_matchers
    from kbc.matchers.registry import load_matcher as load_matcher
    from kbc.pipeline import KBCMatcher as KBCMatcher
    from kbc.pipeline import wrap as wrap
    from kbc.types import Match as Match
    from kbc.types import MatchResult as MatchResult
    from kbc.types import Pair as Pair


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kbc' has no attribute {name!r}")
    return getattr(import_module(f"kbc.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
