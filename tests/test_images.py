"""The door for images: every accepted form gives the same pixels, every other one a typed error with what it got."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import kbc
from kbc.errors import InputError, MatcherError
from kbc.headers import stated_size
from kbc.images import fingerprint, load_image, turned
from kbc.types import Pair
from tests.conftest import draw_scene

SCENE = draw_scene(3, (45, 60))


def written(path: Path, rgb: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return path


def test_a_file_is_rgb_in_any_form_of_path(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0] = 200  # red
    path = written(tmp_path / "red ä.png", image)
    for form in (path, str(path)):
        assert np.array_equal(load_image(form), image)
    assert load_image(path).dtype == np.uint8
    pair = Pair(path, str(path), [[1, 1]])
    assert pair.source[0, 0].tolist() == [200, 0, 0]


def test_grey_alpha_and_deep_files_become_rgb(tmp_path: Path) -> None:
    grey = SCENE[..., 1]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert np.array_equal(load_image(tmp_path / "grey.png"), np.dstack([grey] * 3))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([SCENE[..., ::-1], np.full(SCENE.shape[:2], 9, np.uint8)]))
    assert np.array_equal(load_image(tmp_path / "alpha.png"), SCENE)
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 257)
    deep = load_image(tmp_path / "deep.png")
    assert deep.dtype == np.uint8
    assert np.abs(deep[..., 0].astype(int) - grey).max() <= 1


def test_arrays_and_tensors_give_the_same_pixels() -> None:
    alpha = np.dstack([SCENE, np.zeros(SCENE.shape[:2], np.uint8)])
    forms = [
        SCENE,
        alpha,
        SCENE[:, ::-1][:, ::-1],
        np.asfortranarray(SCENE),
        SCENE.astype(np.float32) / 255,
        SCENE.astype(np.float64) / 255,
        torch.from_numpy(SCENE.copy()).permute(2, 0, 1),
        torch.from_numpy(SCENE.copy()).permute(2, 0, 1).double() / 255,
        (torch.from_numpy(SCENE.copy()).permute(2, 0, 1).float() / 255).requires_grad_(),
    ]
    for form in forms:
        image = load_image(form)
        assert np.array_equal(image, SCENE)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
    grey = SCENE[..., 0]
    for single in (grey, grey[..., None], torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(load_image(single), np.dstack([grey] * 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tensors(dtype: torch.dtype) -> None:
    tensor = (torch.from_numpy(SCENE.copy()).permute(2, 0, 1).float() / 255).to(dtype)
    assert np.abs(load_image(tensor).astype(int) - SCENE).max() <= 1


def test_rgb_arrays_are_not_copied_and_not_written_to() -> None:
    image = SCENE.copy()
    assert load_image(image) is image
    pair = Pair(image, image, [[1, 1]])
    assert np.shares_memory(pair.source, image)
    assert not pair.source.flags.writeable
    assert image.flags.writeable


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_broken_files_are_refused(tmp_path: Path, ending: str, keep: float) -> None:
    path = written(tmp_path / f"photo{ending}", draw_scene(1))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match="truncated" if keep else "empty") as caught:
        Pair(SCENE, path, [[1, 1]])
    assert str(path) in str(caught.value)
    assert "`target`" in str(caught.value)


def test_a_truncated_jpeg_is_not_saved_by_its_thumbnail(tmp_path: Path) -> None:
    whole = written(tmp_path / "photo.jpg", draw_scene(1)).read_bytes()
    thumbnail = written(tmp_path / "small.jpg", SCENE).read_bytes()
    block = b"Exif\0\0" + thumbnail  # cameras store a complete JPEG, end marker included, in the header
    header = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    path = tmp_path / "camera.jpg"
    path.write_bytes(whole[:2] + header + whole[2:])
    assert np.array_equal(load_image(path), load_image(tmp_path / "photo.jpg"))
    path.write_bytes(whole[:2] + header + whole[2:700])
    assert path.read_bytes().endswith(whole[600:700])
    assert b"\xff\xd9" in path.read_bytes()[-4096:]
    with pytest.raises(InputError, match="truncated"):
        load_image(path)


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_data_after_the_end_is_no_truncation(tmp_path: Path, ending: str) -> None:
    """Phones append a film to their pictures."""
    path = written(tmp_path / f"motion{ending}", SCENE)
    before = load_image(path)
    path.write_bytes(path.read_bytes() + bytes(100_000))
    assert np.array_equal(load_image(path), before)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("hello")
    with pytest.raises(InputError, match="cannot decode"):
        load_image(text)
    with pytest.raises(InputError, match=r"existing image file.*nowhere"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"existing image file, received the folder .*; name a picture in it"):
        load_image(tmp_path)
    with pytest.raises(InputError, match=r"received the address 'https://a\.org/b\.jpg'; download it first"):
        load_image("https://a.org/b.jpg")
    cv2.imwrite(str(tmp_path / "depth.tiff"), SCENE.astype(np.float32) / 255)
    assert np.array_equal(load_image(tmp_path / "depth.tiff"), SCENE[..., ::-1])
    cv2.imwrite(str(tmp_path / "heat.tiff"), SCENE.astype(np.float32))
    with pytest.raises(InputError, match=r"heat\.tiff'` must be finite and in \[0, 1\] when it is float"):
        load_image(tmp_path / "heat.tiff")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="the pipe or device"):
        load_image(tmp_path / "pipe.png")


THERMAL = 28_000 + SCENE[..., 1].astype(np.uint16) * 4
EXTREME = THERMAL.copy()
EXTREME[0, :2] = 0, 65_535


def forms(deep: np.ndarray, folder: Path) -> list[object]:
    """A deep image in every form that the door takes."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    cv2.imwrite(str(folder / "t.png"), deep)
    cv2.imwrite(str(folder / "t.tiff"), deep)
    opened = pillow.open(folder / "t.png")
    signed = deep.astype(np.int32)
    return [
        folder / "t.png", folder / "t.tiff", opened, opened.convert("I"), deep, deep[..., None], np.dstack([deep] * 3),
        torch.from_numpy(deep)[None], signed, torch.from_numpy(signed)[None],
    ]  # fmt: skip


def test_deep_images_keep_their_grey_levels_in_every_form(tmp_path: Path) -> None:
    grey = SCENE[..., 1].astype(np.float64)
    stretched = np.rint((grey - grey.min()) / (grey.max() - grey.min()) * 255)
    for form in forms(THERMAL, tmp_path):
        assert np.array_equal(load_image(form), np.dstack([stretched] * 3))  # type: ignore[arg-type]
    for factor in (1, 257):  # a photograph in a deeper type is the photograph
        for form in forms(SCENE[..., 1].astype(np.uint16) * factor, tmp_path):
            assert np.array_equal(load_image(form)[..., 0], SCENE[..., 1])  # type: ignore[arg-type]
    assert np.array_equal(load_image(THERMAL.astype(np.int16) - 30_000), np.dstack([stretched] * 3))
    assert load_image(np.full((4, 5), 700, np.uint16)).max() == 3


def test_a_deep_image_that_extremes_would_crush_is_refused_in_every_form(tmp_path: Path) -> None:
    for form in forms(EXTREME, tmp_path):
        with pytest.raises(
            InputError, match=r"an image that 8 bits can hold, received .*; cut the extremes off: image.cl"
        ):
            load_image(form)  # type: ignore[arg-type]
    first, last = np.percentile(EXTREME, (1, 99))
    assert len(np.unique(load_image(EXTREME.clip(int(first), int(last))))) > 100


def test_masked_pixels_are_refused() -> None:
    masked = np.ma.masked_array(SCENE, SCENE > 200)
    with pytest.raises(InputError, match="without masked pixels"):
        load_image(masked)
    assert np.array_equal(load_image(np.ma.masked_array(SCENE)), SCENE)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tiff", ".pgm", ".jp2"])
def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"large{ending}"
    assert cv2.imwrite(str(path), SCENE[..., 1] if ending == ".pgm" else SCENE)
    assert stated_size(path.read_bytes()) == (45, 60)
    monkeypatch.setenv("KBC_MAX_PIXELS", "2700")
    assert load_image(path).shape == (45, 60, 3)
    monkeypatch.setenv("KBC_MAX_PIXELS", "2699")
    monkeypatch.setattr(cv2, "imdecode", lambda *a: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"at most 2,699 pixels, received 60×45 in .*KBC_MAX_PIXELS"):
        load_image(path)


def test_a_tiff_whose_directory_lies_beyond_any_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "far.tiff"
    path.write_bytes(b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(40))
    with pytest.raises(InputError, match="states no size"):
        load_image(path)


@pytest.mark.parametrize("limit", ["1e9", "-5", "²", "many", "9" * 5000])
def test_a_limit_that_is_no_number_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 5, 3), np.uint8))
    monkeypatch.setenv("KBC_MAX_PIXELS", limit)
    with pytest.raises(InputError, match="`KBC_MAX_PIXELS` must be a whole number"):
        load_image(tmp_path / "a.png")


def test_a_small_file_of_a_huge_picture_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "bomb.png", SCENE)
    data = bytearray(path.read_bytes())
    data[16:24] = (32_000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"at most 150,000,000 pixels, received 32000×32000"):
        load_image(path)


def test_pillow_images_and_what_gives_an_array() -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    picture = pillow.fromarray(SCENE)
    assert np.array_equal(load_image(picture), SCENE)
    assert np.array_equal(Pair(picture, picture, [[1, 1]]).target, SCENE)
    for mode in ("P", "L", "RGBA", "CMYK", "1"):
        assert np.array_equal(load_image(picture.convert(mode)), np.asarray(picture.convert(mode).convert("RGB")))

    class Gives:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            return SCENE

    assert np.array_equal(load_image(Gives()), SCENE)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("tag", [1, 3, 6])
def test_a_file_that_is_turned_upright_is_told(tmp_path: Path, ending: str, tag: int) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    picture, exif = pillow.fromarray(SCENE), pillow.Exif()
    exif[0x0112] = tag
    picture.save(tmp_path / f"photo{ending}", exif=exif)
    assert turned(tmp_path / f"photo{ending}") == (tag != 1)
    assert load_image(tmp_path / f"photo{ending}").shape == ((60, 45, 3) if tag == 6 else SCENE.shape)


@pytest.mark.parametrize("ending", [".bmp", ".webp", ".tiff"])
def test_other_formats(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path / f"photo{ending}", SCENE)
    assert load_image(path).shape == SCENE.shape
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError):
        load_image(path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), "channels last"),
        (np.zeros((8, 9, 2), np.uint8), r"shape \(8, 9, 2\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"shape \(2, 8, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), "1×1"),
        (np.zeros((8, 0), np.uint8), "1×1"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((8, 9, 3), np.int64), "int64"),
        (np.zeros((8, 9, 3), np.int8), "int8"),
        (np.zeros((8, 9, 3), bool), "bool"),
        (np.full((8, 9, 3), 255.0), "255"),
        (np.full((8, 9, 3), -0.1), r"-0\.1"),
        (np.full((8, 9, 3), np.nan), "nan"),
        (torch.zeros(8, 9, 3), r"\(3, H, W\).*\(8, 9, 3\)"),
        (torch.zeros(1, 3, 8, 9), r"\(1, 3, 8, 9\)"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), "int64"),
        ([[1, 2], [3, 4]], "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_shapes_types_and_ranges_are_named(image: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(image, "source")  # type: ignore[arg-type]
    assert "`source`" in str(caught.value)


@pytest.mark.parametrize("size_hw", [(1, 1), (20, 20000), (20000, 20)])
def test_extreme_sizes_go_through_file_and_matcher(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    image = cv2.resize(SCENE, size_hw[::-1])
    path = written(tmp_path / "long.png", image)
    assert np.array_equal(load_image(path), image)
    middle = [[size_hw[1] / 2 - 0.5, size_hw[0] / 2 - 0.5]]
    answer = kbc.wrap(kbc.load_matcher("hog", size=64))(path, path, middle)
    assert answer.shape == (1, 2)
    assert np.isfinite(answer).all()


def test_fingerprints_depend_on_pixels_and_shape_alone() -> None:
    assert fingerprint(SCENE) == fingerprint(SCENE.copy()) == fingerprint(np.asfortranarray(SCENE))
    other = SCENE.copy()
    other[-1, -1, -1] ^= 1
    assert fingerprint(other) != fingerprint(SCENE)
    flat = np.zeros((4, 6, 3), np.uint8)
    assert fingerprint(flat) != fingerprint(flat.reshape(6, 4, 3))


def test_a_reused_video_buffer_is_never_taken_for_the_last_frame() -> None:
    buffer = SCENE.copy()
    seen = {fingerprint(Pair(buffer, buffer, [[0, 0]]).source)}
    for frame in range(1, 4):
        buffer[:] = np.roll(SCENE, frame, axis=1)
        seen.add(fingerprint(Pair(buffer, buffer, [[0, 0]]).source))
    assert len(seen) == 4
    hog = kbc.load_matcher("hog", size=64)
    buffer[:] = SCENE
    first = hog.match([Pair(SCENE, buffer, [[30, 20]])])[0].keypoints
    buffer[:] = np.roll(SCENE, 16, axis=1)
    second = hog.match([Pair(SCENE, buffer, [[30, 20]])])[0].keypoints
    assert np.abs(second - first).max() > 8


def test_an_array_that_was_changed_and_frozen_again_has_another_digest(tmp_path: Path) -> None:
    image = SCENE.copy()
    older = image[:]
    image.setflags(write=False)
    before = fingerprint(image)
    image.setflags(write=True)
    image[0, 0] ^= 1
    image.setflags(write=False)
    changed = fingerprint(image)
    older[0, 1] ^= 1
    assert len({before, changed, fingerprint(image)}) == 3
    opened = load_image(written(tmp_path / "photo.png", SCENE))
    with pytest.raises(ValueError, match="WRITEABLE"):
        opened.setflags(write=True)


def test_an_image_from_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = load_image(written(tmp_path / "photo.png", SCENE))
    assert not image.flags.writeable
    first = fingerprint(image)
    hashed: list[int] = []
    monkeypatch.setattr("kbc.images.hashlib.blake2b", lambda *a, **k: hashed.append(1))
    assert fingerprint(Pair(image, image, [[0, 0]]).source) == first
    assert not hashed


def test_fingerprints_forget_dead_images_and_survive_threads(tmp_path: Path) -> None:
    from kbc import images

    path = written(tmp_path / "photo.png", SCENE)
    before = len(images._digests)
    expected = fingerprint(SCENE)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(100):
            if fingerprint(load_image(path)) != expected:
                wrong.append("digest")

    shared = load_image(path)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert fingerprint(shared) == expected
    for thread in threads:
        thread.join()
    del shared
    assert not wrong
    assert len(images._digests) <= before + 1


@pytest.mark.parametrize("points", [[[1, 2, 2], [3, 4, 0]], np.ones((2, 3)), torch.ones(2, 3)])
def test_cocos_third_column_is_answered_with_what_to_do(points: object) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\); of x, y, visibility give x and y, and NaN where"):
        Pair(SCENE, SCENE, points)
    with pytest.raises(InputError, match=r"`keypoints` must be numbers of shape \(N, 2\)"):
        Pair(SCENE, SCENE, [[1, 2], [3]])


def test_a_box_of_width_and_height_is_answered_with_what_to_do() -> None:
    with pytest.raises(
        InputError, match=r"`target_box` must be .* a box x, y, width, height is \(x, y, x \+ width, y \+"
    ):
        Pair(SCENE, SCENE, [[1, 2]], target_box=(30, 20, 12, 13))


def test_masked_points_are_undefined() -> None:
    masked = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[0, 0], [1, 1], [0, 1]])
    np.testing.assert_array_equal(Pair(SCENE, SCENE, masked).keypoints, [[1, 2], [np.nan] * 2, [np.nan] * 2])


class Table:
    """What a DataFrame shows of itself."""

    def __init__(self, **columns: list[float]) -> None:
        self.columns, self._values = list(columns), columns

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self._values[name])

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array([self._values[name] for name in self.columns], dtype=np.float64).T


def test_a_table_is_read_by_the_names_of_its_columns() -> None:
    tables = [
        Table(y=[2, 4], x=[1, 3]),
        Table(name=[7, 8], Y=[2, 4], X=[1, 3]),
        np.array([(2, 1), (4, 3)], dtype=[("y", float), ("x", float)]),
    ]
    for table in tables:
        assert Pair(SCENE, SCENE, table).keypoints.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match="a table with the columns x and y, received the columns row, col"):
        Pair(SCENE, SCENE, Table(row=[2, 4], col=[1, 3]))


def test_pandas_columns_are_read_by_name() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is nobody's dependency here")
    frame = pandas.DataFrame({"y": [2.0, None], "x": [1.0, 3.0]})
    np.testing.assert_array_equal(Pair(SCENE, SCENE, frame).keypoints, [[1, 2], [np.nan, np.nan]])
    assert Pair(SCENE, SCENE, pandas.DataFrame([[1, 2], [3, 4]])).keypoints.tolist() == [[1, 2], [3, 4]]


def test_relative_coordinates_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"`keypoints` must be pixels of the source image, received points in \[0, 1\]"
    ):
        Pair(SCENE, SCENE, [[0.2, 0.3], [np.nan, np.nan], [0.5, 1.0]])
    for box in ((0.1, 0.2, 0.5, 0.6), (0, 0, 1, 1)):
        with pytest.raises(InputError, match=r"`target_box` must be pixel edges, received a box in \[0, 1\]"):
            Pair(SCENE, SCENE, [[1, 2]], target_box=box)
    assert len(Pair(SCENE, SCENE, [[0, 0], [1, 1]]).keypoints) == 2  # whole pixels
    assert len(Pair(SCENE, SCENE, [[0.5, 0.5]]).keypoints) == 1
    assert len(Pair(SCENE, SCENE, [[0.5, 0.5], [1.5, 0.5]]).keypoints) == 2


def test_integers_of_hundreds_of_digits_are_no_points() -> None:
    with pytest.raises(InputError, match=r"`keypoints` must be numbers of shape"):
        Pair(SCENE, SCENE, [[10**400, 1]])


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda x: x.to("meta"), "meta"), (lambda x: x.to_sparse(), "sparse"), (lambda x: x.to_sparse().half(), "sparse")],
)
def test_tensors_without_pixels_are_refused(change: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"`image` must be a dense tensor that holds numbers.*{said}"):
        load_image(change(torch.rand(3, 4, 5)))


def test_big_endian_arrays_are_read() -> None:
    deep = np.random.default_rng(0).integers(0, 65535, (40, 50, 3)).astype(np.uint16)
    for kind in (">u2", ">i4", ">f4"):
        given = deep / 65535 if kind == ">f4" else deep
        np.testing.assert_array_equal(load_image(given.astype(kind)), load_image(given.astype(kind[1:])))


@pytest.mark.parametrize("values", [np.zeros((2, 2), bool), np.zeros((2, 2), "datetime64[s]"), [[True, False]]])
def test_truth_values_and_dates_are_no_coordinates(values: object) -> None:
    blank = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="`keypoints` must be numbers"):
        Pair(blank, blank, values)
    with pytest.raises(MatcherError, match="must give numbers as keypoints"):
        kbc.as_matcher(lambda source, target, keypoints: np.zeros((1, 2), bool)).match([Pair(blank, blank, [[2, 3]])])


@pytest.mark.parametrize(
    "box",
    [(0, 0, 10**400, 4), np.ma.array([0, 0, 3, 4.0], mask=[0, 0, 1, 0]), (1j, 0, 3, 4), (True, False, True, True)],
)
def test_boxes_of_no_numbers_are_refused(box: object) -> None:
    blank = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="`target_box` must be"):
        Pair(blank, blank, [[2, 3]], target_box=box)  # type: ignore[arg-type]
