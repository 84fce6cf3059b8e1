"""The door for images: paths, arrays and tensors become uint8 RGB (H, W, 3) arrays, once."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, MissingDependencyError, must_be

if TYPE_CHECKING:
    import torch

Image: TypeAlias = npt.NDArray[np.uint8]
"""RGB, uint8, (H, W, 3)."""

ImageLike: TypeAlias = "npt.NDArray[Any] | torch.Tensor | str | os.PathLike[str]"
"""What is accepted at the door: a path, an array (grey, RGB, RGBA; uint8 or float in [0, 1]) or a (3, H, W) tensor.

A Pillow image and whatever else gives an array (`__array__`) are accepted as well."""

_fingerprints: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_digests: dict[int, bytes] = {}


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

    Grey is repeated to three channels, alpha is dropped. Floats must lie in [0, 1]. An array that already is uint8
    RGB is returned as it is, without a copy. EXIF orientation of files is applied, as OpenCV does (see `turned`); a
    Pillow image is taken as it stands.

    Raises:
        InputError: a missing, empty or broken file, a wrong shape, dtype or range.
    """
    given: Any = image
    if isinstance(given, (str, os.PathLike)):
        return _from_file(given, argument)
    if hasattr(given, "detach") and hasattr(given, "movedim"):
        return _from_tensor(given, argument)
    if hasattr(given, "convert") and hasattr(given, "__array_interface__"):
        given = given.convert("RGB")  # Pillow, whose arrays may be indices into a palette, or CMYK
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
            raise InputError(must_be(argument, "an existing image file", received, hint))
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(must_be(argument, "a file that can be read", f"{str(path)!r} ({error})")) from error
    if data.size == 0:
        raise InputError(must_be(argument, "an image file", f"the empty file {str(path)!r}"))
    if _is_truncated(data):
        raise InputError(
            must_be(argument, "a complete image file", f"the truncated file {str(path)!r}", "copy it again")
        )
    try:
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise InputError(must_be(argument, "a readable image file", f"{str(path)!r} ({error})")) from error
    if decoded is None:
        raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)  # a TIFF of floats, for one
        received, hint = "which OpenCV cannot decode", "is the file complete and in a common format?"
        if raw is not None:
            received = f"which holds {raw.dtype} {'×'.join(map(str, raw.shape))}"
            hint = "read it yourself and give an array, uint8 or float in [0, 1]"
        raise InputError(must_be(argument, "a readable image file", f"{str(path)!r}, {received}", hint))
    rgb: Image = np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    rgb.setflags(write=False)
    return rgb


def _is_truncated(data: npt.NDArray[np.uint8]) -> bool:
    """True for a JPEG or PNG without its end marker. OpenCV fills the missing part with grey and says nothing.

    The marker need not lie at the end: phones append a film to their pictures.
    """
    content = data.tobytes()
    if content.startswith(b"\xff\xd8\xff"):
        return content.find(b"\xff\xd9", _start_of_scan(content)) < 0
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" not in content
    return False


def _start_of_scan(content: bytes) -> int:
    """Where a JPEG's pixels begin: past its headers, whose thumbnail has an end marker of its own."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        padded = content[place + 1] == 0xFF  # any number of 0xFF may stand before a marker
        place += 1 if padded else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return place


def _from_array(image: npt.NDArray[Any], argument: str) -> Image:
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
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(must_be(argument, "uint8, or float in [0, 1]", f"dtype {image.dtype}"))
    low, high = float(np.min(image)), float(np.max(image))
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise InputError(
            must_be(argument, "finite and in [0, 1] when it is float", f"values in [{low}, {high}]", "divide by 255?")
        )
    return np.ascontiguousarray(np.rint(image * 255.0).astype(np.uint8))


def _from_tensor(image: torch.Tensor, argument: str) -> Image:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise InputError(must_be(argument, "a tensor (3, H, W)", f"shape {tuple(image.shape)}"))
    if image.is_floating_point():
        image = image.float()  # NumPy has no bfloat16
    return _from_array(image.detach().movedim(0, 2).cpu().numpy(), argument)


def fingerprint(image: Image) -> bytes:
    """A digest of the pixels: the key under which features of an image are cached.

    Arrays that own their memory and are read-only (what `load_image` makes from a file) are hashed once; others are
    hashed at every call, because a video loop may write the next frame into the same buffer.
    """
    frozen = image.base is None and not image.flags.writeable
    if frozen and _fingerprints.get(id(image)) is image:
        return _digests[id(image)]
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    digest.update(str(image.shape).encode())
    value = digest.digest()
    if frozen:
        key = id(image)
        _digests[key] = value  # first: another thread looks here once it finds the image below
        _fingerprints[key] = image
        weakref.finalize(image, _digests.pop, key, None)
    return value


def image_hw(image: object) -> tuple[int, int]:
    """(height, width) of an image array (H, W, 3)."""
    shape = image.shape  # type: ignore[attr-defined]
    return int(shape[0]), int(shape[1])
