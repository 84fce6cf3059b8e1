"""The door for images: paths, arrays and tensors become uint8 RGB (H, W, 3) arrays, once."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, MissingDependencyError, must_be, whole_number, width_by_height
from kbc.headers import FORMATS, start_of_scan, stated_size

if TYPE_CHECKING:
    import torch

Image: TypeAlias = npt.NDArray[np.uint8]
"""RGB, uint8, (H, W, 3)."""

ImageLike: TypeAlias = "npt.NDArray[Any] | torch.Tensor | str | os.PathLike[str]"
"""What is accepted at the door: a path, an array (grey, RGB, RGBA; see `load_image`) or a (3, H, W) tensor.

A Pillow image and whatever else gives an array (`__array__`) are accepted as well."""

MAX_PIXELS = 150_000_000
"""Pixels that an image file may have; the environment variable KBC_MAX_PIXELS sets another number."""

_DEEP = (np.uint16, np.int16, np.uint32, np.int32)

_fingerprints: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_digests: dict[int, bytes] = {}
_origins: dict[int, tuple[Any, str]] = {}


def require_cv2() -> Any:
    """The `cv2` module, or an error that says which one line to run.

    `opencv-python` needs the system's libGL, which slim containers lack; `opencv-python-headless` does not.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"kbc needs OpenCV and `import cv2` failed ({error}); run: "
            "pip uninstall -y opencv-python && pip install opencv-python-headless"
        ) from error
    return cv2


def load_image(image: ImageLike, argument: str = "image") -> Image:
    """Convert anything accepted at the door to RGB uint8 (H, W, 3).

    Grey is repeated to three channels, alpha is dropped. Files, arrays, tensors and Pillow images follow one rule:
    uint8 is taken as it is, without a copy; integers of 16 or 32 bits are divided by 257, or, where that leaves hardly
    any grey level (thermal and X-ray cameras), have their own range stretched over 0 … 255; where a few extreme pixels
    prevent that, too, they are refused; floats must lie in [0, 1]. EXIF orientation of files is applied, as OpenCV does
    (see `turned`); a Pillow image is taken as it stands.

    Raises:
        InputError: a missing, empty or broken file, more than `MAX_PIXELS`, a wrong shape, dtype or range, a masked
            array.

    >>> load_image(np.full((2, 3), 0.5)).tolist()[0][0]  # grey, in [0, 1]
    [128, 128, 128]
    """
    given: Any = image
    if isinstance(given, (str, os.PathLike)):
        return _from_file(given, argument)
    if hasattr(given, "detach") and hasattr(given, "movedim"):
        return _from_tensor(given, argument)
    if hasattr(given, "convert") and hasattr(given, "__array_interface__") and given.mode[:1] not in ("I", "F"):
        given = given.convert("RGB")  # Pillow, whose arrays may be indices into a palette, or CMYK; I and F are deep
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        hint = "fill its masked pixels first: image.filled(0)"
        raise InputError(must_be(argument, "an image without masked pixels", "a masked array", hint))
    if hasattr(given, "__array__") or hasattr(given, "__array_interface__"):
        return _from_array(np.asarray(given), argument)
    raise InputError(must_be(argument, "a path, a NumPy array or a torch tensor", type(image).__name__))


def turned(path: str | os.PathLike[str]) -> bool:
    """Whether `load_image` turns this file upright (EXIF), so that its pixels lie elsewhere than in the file.

    Seen by decoding a readable image once more, as OpenCV does it; False where there is no such file. A TIFF's tag is
    applied as well, and not seen here.
    """
    cv2 = require_cv2()
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError):  # a drawn scene has no file
        return False
    if b"exif" not in data.tobytes().lower():  # JPEG, PNG and WebP write Exif, eXIf and EXIF
        return False
    try:
        stored = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        return not np.array_equal(stored, cv2.imdecode(data, cv2.IMREAD_COLOR))
    except cv2.error:
        return False


def _from_file(name: str | os.PathLike[str], argument: str) -> Image:
    cv2 = require_cv2()
    path = Path(name)
    try:
        if not path.is_file():
            received, hint = repr(str(path)), "check the path"
            if "://" in str(name):
                received, hint = f"the address {str(name)!r}", "download it first and give the file"
            elif path.is_dir():
                received, hint = f"the folder {str(path)!r}", "name a picture in it"
            elif path.exists():
                received, hint = f"the pipe or device {str(path)!r}", "write the picture into a file first"
            raise InputError(must_be(argument, "an existing image file", received, hint))
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(must_be(argument, "a file that can be read", f"{str(path)!r} ({error})")) from error
    _check_header(data.tobytes(), path, argument)
    try:
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise InputError(must_be(argument, "a readable image file", f"{str(path)!r} ({error})")) from error
    if decoded is None:
        hint = "is the file complete and in a common format?"
        received = f"{str(path)!r}, which OpenCV cannot decode"
        raise InputError(must_be(argument, "a readable image file", received, hint))
    return immutable(_from_array(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB, dst=decoded), f"{argument} {str(path)!r}"))


def immutable(image: Image, part_of: Image | None = None, which: str = "") -> Image:
    """A copy whose memory nobody can ever write to: its digest can be kept.

    Args:
        image: to be copied.
        part_of: the immutable image that it was made from, if any. It is then known by that and by `which` part it is,
            and never hashed itself.
        which: names that part, and how it was made, for good.
    """
    copy: Image = np.ndarray(image.shape, np.uint8, image.tobytes())
    if part_of is not None:
        key = id(copy)
        _origins[key] = (part_of, which)
        weakref.finalize(copy, _origins.pop, key, None)
    return copy


def _is_immutable(image: Image) -> bool:
    return isinstance(image.base, bytes)


def _check_header(content: bytes, path: Path, argument: str) -> None:
    """Refuse a file that is empty, cut off or of no known format, or whose image would be too large to decode."""
    if not content:
        raise InputError(must_be(argument, "an image file", f"the empty file {str(path)!r}"))
    if _is_truncated(content):
        received = f"the truncated file {str(path)!r}, which lacks its format's end marker"
        hint = "it was cut off when it was copied, or is written without one: copy it again, or save it anew"
        raise InputError(must_be(argument, "a complete image file", received, hint))
    size = stated_size(content)
    if size is None:
        received = f"{str(path)!r}, which OpenCV cannot decode or which states no size"
        raise InputError(must_be(argument, f"a readable image file ({FORMATS})", received, "save it as PNG"))
    limit = os.environ.get("KBC_MAX_PIXELS", "")
    most = whole_number("KBC_MAX_PIXELS", limit) if limit else MAX_PIXELS
    if size[0] * size[1] > most:
        received = f"{width_by_height(size)} in {str(path)!r}"
        hint = "shrink it, or set the environment variable KBC_MAX_PIXELS"
        raise InputError(must_be(argument, f"at most {most:,} pixels", received, hint))


def _is_truncated(content: bytes) -> bool:
    """True for a JPEG or PNG without its end marker. OpenCV fills the missing part with grey and says nothing.

    The marker need not lie at the end: phones append a film to their pictures.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return content.find(b"\xff\xd9", start_of_scan(content)) < 0
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in content
    return False


def _from_array(image: npt.NDArray[Any], argument: str) -> Image:
    image = image.astype(image.dtype.newbyteorder("="), copy=False)  # TIFF readers give big-endian ones
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        hint = "move the channels last: image.transpose(1, 2, 0)" if image.ndim == 3 and image.shape[0] == 3 else ""
        raise InputError(must_be(argument, "an array (H, W), (H, W, 3) or (H, W, 4)", f"shape {image.shape}", hint))
    if image.shape[0] < 1 or image.shape[1] < 1:
        raise InputError(must_be(argument, "at least 1×1 pixel", f"shape {image.shape}"))
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    if image.shape[2] == 4:
        image = image[:, :, :3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if image.dtype in _DEEP:
        return _in_eight_bits(image, argument)
    if not np.issubdtype(image.dtype, np.floating):
        hint = "for values of 0 … 255: image.astype(np.uint8)"
        raise InputError(
            must_be(argument, "uint8, 16 or 32 bit integers, or float in [0, 1]", f"dtype {image.dtype}", hint)
        )
    low, high = float(np.min(image)), float(np.max(image))
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise InputError(
            must_be(
                argument,
                "finite and in [0, 1] when it is float",
                f"values in [{low}, {high}]",
                "scale it: divide by 255, or (image - low) / (high - low)",
            )
        )
    return np.ascontiguousarray(np.rint(image * 255.0).astype(np.uint8))


def _in_eight_bits(image: npt.NDArray[Any], argument: str) -> Image:
    """Deep integers in 8 bits: 0 … 255 as they are, 0 … 65535 divided by 257, or else their own range stretched.

    The first of these that keeps at least 32 grey levels in the middle 98 % of the pixels, or half of those there are.

    Raises:
        InputError: none does: a few extreme pixels leave the others hardly any.
    """
    low, high = int(image.min()), int(image.max())
    first, last = np.percentile(image, (1, 99))
    middle = (image >= first) & (image <= last)
    enough = min(32, len(np.unique(image[middle])) / 2)
    for bottom, top in ((0, 255), (0, 65535), (low, max(high, low + 1))):
        if bottom <= low and high <= top:
            small = np.rint((image.astype(np.float64) - bottom) * (255.0 / (top - bottom))).astype(np.uint8)
            if len(np.unique(small[middle])) >= enough:
                return np.ascontiguousarray(small)
    received = f"{image.dtype} values of {low} … {high}, 98 % of them in {first:g} … {last:g}"
    hint = f"cut the extremes off: image.clip({first:g}, {last:g})"
    raise InputError(must_be(argument, "an image that 8 bits can hold", received, hint))


def _from_tensor(image: torch.Tensor, argument: str) -> Image:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise InputError(must_be(argument, "a tensor (3, H, W)", f"shape {tuple(image.shape)}"))
    if image.is_floating_point():
        image = image.float()  # NumPy has no bfloat16
    try:
        array = image.detach().movedim(0, 2).cpu().numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without content (the meta device)
        received = f"one on {image.device} of layout {image.layout}"
        raise InputError(must_be(argument, "a dense tensor that holds numbers", received)) from error
    return _from_array(array, argument)


def fingerprint(image: Image) -> bytes:
    """A digest of the pixels: the key under which features of an image are cached.

    Images whose memory cannot change (what `load_image` makes of a file, see `immutable`) are hashed once, their parts
    never; others are hashed at every call, because a video loop may write the next frame into the same buffer.
    """
    kept = _is_immutable(image)
    if kept and _fingerprints.get(id(image)) is image:
        return _digests[id(image)]
    whole, which = _origins.get(id(image), (None, "")) if kept else (None, "")
    content = fingerprint(whole) + which.encode() if whole is not None else np.ascontiguousarray(image).data
    digest = hashlib.blake2b(content, digest_size=16)
    digest.update(str(image.shape).encode())
    value = digest.digest()
    if kept:
        key = id(image)
        _digests[key] = value  # first: another thread looks here once it finds the image below
        _fingerprints[key] = image
        weakref.finalize(image, _digests.pop, key, None)
    return value


def image_hw(image: object) -> tuple[int, int]:
    """(height, width) of an image array (H, W, 3)."""
    shape = image.shape  # type: ignore[attr-defined]
    return int(shape[0]), int(shape[1])
