"""The errors kbc raises. Each message names the argument, says what it must be and what was received."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any


class KBCError(Exception):
    """Base class of every error raised on purpose by kbc.

    >>> issubclass(InputError, KBCError) and issubclass(MatcherError, KBCError)
    True
    """


class InputError(KBCError, ValueError):
    """An argument is not what the function documents.

    >>> import kbc
    >>> kbc.wrap("hog")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kbc.errors.InputError: `matcher` must be a Matcher ...; load_matcher('hog') makes a matcher of a name
    """


class DataError(InputError):
    """A file or a data set on disk is missing, broken or inconsistent.

    >>> import kbc.data
    >>> kbc.data.open_dataset("coco", "absent")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    kbc.errors.DataError: ...
    """


class MatcherError(KBCError, RuntimeError):
    """A matcher raised, or gave back something that cannot be an answer. The message names the matcher.

    >>> import numpy as np, kbc
    >>> photo = np.zeros((40, 60, 3), np.uint8)
    >>> first = kbc.as_matcher(lambda source, target, keypoints: keypoints[:1], name="first")
    >>> first.match([kbc.Pair(photo, photo, [[4, 5], [51, 8]])])
    Traceback (most recent call last):
    kbc.errors.MatcherError: matcher 'first' must give keypoints of shape (2, 2), received (1, 2)
    """


class MissingDependencyError(KBCError, ImportError):
    """An optional package is needed for what was asked; the message gives the install line.

    >>> issubclass(MissingDependencyError, ImportError)
    True
    """


def require(module: str, need: str, extra: str) -> Any:
    """The module of an optional package.

    Args:
        module: its name.
        need: who needs which package, for the message: "kbc ui needs Gradio".
        extra: of kbc, which brings it.

    Raises:
        MissingDependencyError: it cannot be imported; with the line to run.
    """
    try:
        return import_module(module)
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"  # it is there, and broken
        raise MissingDependencyError(f'{need}{why}; run: pip install "kbc[{extra}]"') from error


def must_be(argument: str, expected: str, received: object, hint: str = "") -> str:
    """The one form of kbc's error messages: "`argument` must be …, received …; hint"."""
    text = f"`{argument}` must be {expected}, received {received}"
    return f"{text}; {hint}" if hint else text


def refuse_others(argument: str, value: object, known: Iterable[str]) -> None:
    """Refuse a value that is none of the known ones.

    Raises:
        InputError: it is none of them.
    """
    names = tuple(known)
    if value not in names:
        raise InputError(must_be(argument, f"one of {', '.join(names)}", repr(value)))


def whole_number(name: str, text: str) -> int:
    """A whole number as an environment variable has it.

    Raises:
        InputError: something else.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InputError(must_be(name, "a whole number", f"{text!r:.60}"))
    return int(text)


def requirement(message: str) -> str:
    """What pydantic says of a field, in the words of `must_be`.

    >>> requirement("Input should be a valid number")
    'must be a valid number'
    """
    known = {"Field required": "must be given", "Extra inputs are not permitted": "must not be given"}
    said = message.removeprefix("Input should be ").partition(" or instance of ")[0]  # the name of a class of kbc's
    return f"must be {said}" if said != message else known.get(message, f"is not valid ({message})")


def as_text(name: str) -> str:
    """A name as UTF-8 can hold it: each byte that is none, as names on disk may have, becomes its escape."""
    return name.encode(errors="backslashreplace").decode()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest known names, or all of them."""
    names = sorted(known)
    by_lower = {one.lower(): one for one in names}
    close = [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names)}"


def width_by_height(size_hw: Sequence[int]) -> str:
    """(height, width), or the shape of an image, as people say it.

    >>> width_by_height((480, 640, 3))
    '640×480'
    """
    return f"{size_hw[1]}×{size_hw[0]}"


def counted(number: int, noun: str = "problem") -> str:
    """ "1 problem", "2 problems"."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{number} {noun if number == 1 else plural}"
