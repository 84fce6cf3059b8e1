"""Names → matchers, through the entry points of the group "kbc.matchers"."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from kbc.errors import InputError, must_be, nearest
from kbc.matchers.protocol import Matcher
from kbc.tensors import usable_device

if TYPE_CHECKING:
    pass

GROUP = "kbc.matchers"


def available_matchers() -> list[str]:
    """The names `load_matcher` knows, sorted; those of third parties included."""
    return sorted(_found())


def load_matcher(name: str, **options: Any) -> Matcher:
    """Build a matcher by name.

    Args:
        name: one of `available_matchers()`.
        options: what that matcher takes, e.g. `weights=`, `size=`, `checkout=`, `checkpoint=`, `device=`.

    Raises:
        InputError: an unknown name or option (the message gives the nearest known ones), or a value that a builder's
            switch (a bool) cannot have.
        MissingDependencyError: the matcher needs an optional package.
    """
    known = _found()
    if name not in known:
        raise InputError(must_be("name", "a known matcher", repr(name), nearest(name, known)))
    builder = known[name].load()
    parameters = inspect.signature(builder).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            raise InputError(must_be("options", f"ones that {name!r} takes", repr(option), nearest(option, parameters)))
    for option, value in options.items():
        if option in parameters and _is_switch(parameters[option]) and not isinstance(value, bool):
            raise InputError(must_be(option, "true or false", repr(value), f"in the shell --option {option}=true"))
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and key not in options and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if missing:
        line = " ".join(f"--option {key}=…" for key in missing)
        hint = f"on the command line {line}; `kbc matchers {name}` says more"
        raise InputError(must_be(", ".join(missing), f"given to {name!r}", "nothing", hint))
    if options.get("device") is not None:
        usable_device(options["device"])  # before anything is read from disk for it
    return cast(Matcher, builder(**options))


def _is_switch(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (bool, "bool") or isinstance(parameter.default, bool)


def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
