"""Names → matchers, through the entry points of the group "kbc.matchers" or as package.module:function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from kbc.errors import InputError, must_be, nearest
from kbc.files import tree_digest
from kbc.matchers.function import to_matcher
from kbc.matchers.protocol import Matcher
from kbc.tensors import usable_device

GROUP = "kbc.matchers"


def available_matchers() -> list[str]:
    """The names `load_matcher` knows, sorted; those of third parties included.

    >>> "hog" in available_matchers()
    True
    """
    return sorted(_found())


def load_matcher(name: str, /, **options: Any) -> Matcher:
    """Build a matcher by name.

    Args:
        name: one of `available_matchers()`, or "package.module:name", imported as Python does: a matcher, a function
            `f(source, target, keypoints)` of exactly these three, or a function that takes the options by name and
            gives a matcher.
        options: what that matcher takes, e.g. `weights=`, `size=`, `checkout=`, `checkpoint=`, `device=`.

    Raises:
        InputError: an unknown name, module or option (the message gives the nearest known ones), or a value that a
            builder's switch (a bool) cannot have.
        MissingDependencyError: the matcher needs an optional package.

    >>> load_matcher("hog", size=320)
    FeatureMatcher('hog', 320×320 px)
    """
    if not isinstance(name, str):
        raise InputError(must_be("name", "text", type(name).__name__, "kbc.wrap takes a matcher itself"))
    builder = find_matcher(name).load()
    network = hasattr(builder, "forward") and not isinstance(builder, type)  # taken, or refused with what fits
    if ":" in name and (network or is_matcher(builder)):
        if options:
            raise InputError(must_be("options", f"none, for {name!r} is a matcher already", sorted(options)))
        return to_matcher(builder)
    if not callable(builder):
        raise InputError(must_be("name", "that of a matcher or a function", f"{name!r}, a {type(builder).__name__}"))
    _check_options(name, builder, options)
    return to_matcher(builder(**options))


def find_matcher(name: str) -> EntryPoint:
    """Where a matcher of this name comes from; `.load()` gives what makes it, or itself.

    Raises:
        InputError: there is none: no such name, module or attribute.
    """
    known = _found()
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        hint = nearest(name, known)
        raise InputError(must_be("name", "a known matcher, or package.module:function", repr(name), hint))
    point = EntryPoint(name, name, GROUP)
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise InputError(must_be("name", "package.module:function", repr(name)))
    try:
        point.load()
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # found, and something that it needs is not
        hint = "its folder must be the working directory or on PYTHONPATH"
        raise InputError(must_be("name", "package.module:function that can be imported", repr(name), hint)) from error
    except AttributeError as error:
        raise InputError(must_be("name", "package.module:function", f"{name!r} ({error})")) from error
    return point


def content_digests(name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what a matcher's answers depend on beside its options: files and folders that these name, own code.

    Of a folder (a checkout) its Python files count, and weights beside them; of package.module:function and of a
    package's entry point the module's file.
    """
    named = {
        str(value): Path(value).expanduser() for value in options.values() if value and isinstance(value, str | Path)
    }
    point = find_matcher(name) if ":" in name else _found().get(name)
    if point and point.module.partition(".")[0] not in ("kbc", "kbc_adapters"):  # of which kbc's version tells
        named[name] = Path(inspect.getsourcefile(import_module(point.module)) or "")
    digests = {key: tree_digest(path) for key, path in sorted(named.items())}
    return {key: digest for key, digest in digests.items() if digest}


def _check_options(name: str, builder: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            raise InputError(must_be("options", f"ones that {name!r} takes", repr(option), nearest(option, parameters)))
    for option, value in options.items():
        if option in parameters and _is_switch(parameters[option]) and not isinstance(value, bool):
            raise InputError(must_be(option, "true or false", repr(value), f"in the shell --option {option}=true"))
    needed = {
        key: p
        for key, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if any(p.kind is p.POSITIONAL_ONLY for p in needed.values()):
        raise InputError(must_be("name", "of what takes its options by name", f"{name!r}, which does not"))
    missing = [key for key in needed if key not in options]
    if missing:
        line = " ".join(f"--option {key}=…" for key in missing)
        hint = f"on the command line {line}; `kbc matchers {name}` says more"
        raise InputError(must_be(", ".join(missing), f"given to {name!r}", "nothing", hint))
    if options.get("device") is not None:
        usable_device(options["device"])  # before anything is read from disk for it


def is_matcher(found: object) -> bool:
    """Whether a name led to a matcher or a matching function, not to what makes one."""
    if isinstance(found, type) or not callable(found):
        return not isinstance(found, type) and hasattr(found, "match")
    parameters = inspect.signature(found).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return hasattr(found, "match") or len(needed) == 3


def _is_switch(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (bool, "bool") or isinstance(parameter.default, bool)


def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
