"""The page: what it computes, and the page itself in a real headless Chromium."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import kbc
from kbc import cli
from kbc.cli.points import typed_points
from kbc.cli.ui import COLUMNS, Server, answer, build, draw_example, launch_options
from kbc.data.scenes.render import ScenePair, scene_pair
from kbc.errors import InputError, MissingDependencyError
from tests.browsers import new_page


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, ScenePair]:
    folder = tmp_path_factory.mktemp("photos")
    scene = scene_pair(4, category="car", variation=0.1, turn=3.0, mirror=0.0, object_fraction=(0.2, 0.2))
    for name, side in (("a", scene.source), ("b", scene.target)):
        cv2.imwrite(str(folder / f"{name}.png"), side.image[:, :, ::-1])
    return str(folder / "a.png"), str(folder / "b.png"), scene


def test_an_answer_has_a_picture_numbers_and_a_file(tmp_path: Path, photos: tuple[str, str, ScenePair]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    source, target, _ = photos
    view = answer(Server(tmp_path), source, target, "100,90 120.5,80", "", "hog", "best", "fast")
    assert cv2.imread(view.picture).shape[1] > 800
    saved = json.loads(Path(view.download).read_text())
    assert [row[0] for row in view.table] == ["0", "1"]
    assert all(len(row) == len(COLUMNS) for row in view.table)
    assert view.table[1][5:7] == [f"{v:.1f}" for v in saved["keypoints"][1]]
    assert saved["source_keypoints"][1] == [120.5, 80.0]
    assert "cost" in view.summary


def test_a_target_box_is_used_and_named(tmp_path: Path, photos: tuple[str, str, ScenePair]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    source, target, scene = photos
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in scene.source.keypoints)
    box = ",".join(f"{edge:.2f}" for edge in scene.target_box.xyxy)
    view = answer(Server(tmp_path), source, target, points, box, "hog", "best", "fast")
    assert "The target box was given." in view.summary
    assert json.loads(Path(view.download).read_text())["given"] == ["target"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": None}, "`source` must be an image, received none"),
        ({"target": None}, "`target` must be an image, received none"),
        ({"points": " "}, "`points` must be at least one point"),
        ({"points": "1"}, "`--points` must be"),
        ({"box": "1,2"}, "`target box` must be four numbers"),
    ],
)
def test_what_is_missing_is_named(
    change: dict[str, Any], message: str, tmp_path: Path, photos: tuple[str, str, ScenePair]
) -> None:
    given = {"source": photos[0], "target": photos[1], "points": "10,10", "box": ""} | change
    with pytest.raises(InputError, match=message):
        answer(Server(tmp_path), **given, matcher="hog", localizer="best", budget="fast")


def test_an_example_is_on_disk_with_its_points(tmp_path: Path) -> None:
    source, target, points = draw_example(Server(tmp_path), 3)
    assert cv2.imread(source).shape == cv2.imread(target).shape == (480, 640, 3)
    assert len(typed_points(points)) >= 8
    assert draw_example(Server(tmp_path), 4)[2] != points


def test_only_matchers_that_need_nothing_are_offered(tmp_path: Path) -> None:
    names = Server(tmp_path).matchers()
    assert "hog" in names
    assert "resnet18" not in names
    assert "resnet18" in Server(tmp_path, "resnet18", {"weights": "a.pth"}).matchers()


def test_without_gradio_the_line_to_run_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "kbc\[ui\]"'):
        build(Server(tmp_path))
    assert cli.main(["ui", "--no-browser"]) == cli.MISSING
    assert 'pip install "kbc[ui]"' in capsys.readouterr().err


# In the browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is an extra")
    page = build(Server(tmp_path_factory.mktemp("ui")))
    _, url, _ = page.launch(**launch_options())
    yield url
    page.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with new_page(tmp_path / "profile", 1300, 1250) as page:
        yield page


def text_of(page: Any, name: str) -> str:
    return str(page.input_value(f"#kbc-{name} textarea, #kbc-{name} input"))


def at(page: Any, side: str, point: np.ndarray, size_hw: tuple[int, int]) -> tuple[float, float]:
    """Where a point of an image is on the screen."""
    box = page.locator(f"#kbc-{side} img").bounding_box()
    x, y = (point + 0.5) * (box["width"] / size_hw[1], box["height"] / size_hw[0])
    return box["x"] + x, box["y"] + y


def numbers(page: Any) -> np.ndarray:
    """The page's table: source, coarse and KBC coordinates."""
    rows = page.eval_on_selector_all(
        "#kbc-table tbody tr", "rows => rows.map(r => [...r.querySelectorAll('td')].map(c => c.innerText.trim()))"
    )
    return np.array([[float(cell) for cell in row[1:7]] for row in rows if len(row) >= 8])


@pytest.mark.slow
def test_clicking_matching_and_reading_the_numbers(
    address: str, browser: Any, photos: tuple[str, str, ScenePair], tmp_path: Path
) -> None:
    """A new user's way: two files, points clicked, a match, a box dragged, a match again, the JSON downloaded."""
    source, target, scene = photos
    faults: list[str] = []
    abroad: list[str] = []
    browser.on("pageerror", lambda error: faults.append(str(error)))
    browser.on("request", lambda request: abroad.append(request.url) if "127.0.0.1" not in request.url else None)
    browser.goto(address)
    browser.wait_for_selector("#kbc-source input[type=file]", state="attached", timeout=60_000)
    for side, path in (("source", source), ("target", target)):
        browser.set_input_files(f"#kbc-{side} input[type=file]", path)
        browser.wait_for_selector(f"#kbc-{side} img")
    browser.wait_for_timeout(500)

    size = scene.source.image.shape[:2]
    for point in scene.source.keypoints:
        browser.mouse.click(*at(browser, "source", point, size))
    clicked = typed_points(text_of(browser, "points"))
    assert np.abs(clicked - scene.source.keypoints).max() < 1.0  # a screen pixel is more than an image pixel here
    browser.click("#kbc-undo")
    browser.wait_for_function("n => document.querySelector('#kbc-points textarea').value.split(' ').length === n",
                              arg=len(clicked) - 1)  # fmt: skip
    assert text_of(browser, "box") == ""

    browser.click("#kbc-budget label:has-text('fast')")
    browser.click("#kbc-match")
    browser.wait_for_selector("#kbc-picture img", timeout=120_000)
    browser.wait_for_function("n => document.querySelectorAll('#kbc-table tbody tr').length >= n",
                              arg=len(clicked) - 1)  # fmt: skip
    browser.wait_for_timeout(500)
    shown = numbers(browser)
    pair = kbc.Pair(source, target, clicked[:-1])
    expected = kbc.wrap(kbc.load_matcher("hog"), budget="fast").match([pair])[0]
    np.testing.assert_allclose(shown[:, 2:4], expected.coarse, atol=0.11)
    np.testing.assert_allclose(shown[:, 4:6], expected.keypoints, atol=0.11)

    box = scene.target_box
    browser.mouse.move(*at(browser, "target", np.array([box.x0, box.y0]) - 0.5, size))
    browser.mouse.down()
    browser.mouse.move(*at(browser, "target", np.array([box.x1, box.y1]) - 0.5, size), steps=5)
    browser.mouse.up()
    dragged = np.array([float(v) for v in text_of(browser, "box").split(",")])
    assert np.abs(dragged - box.xyxy).max() < 1.0
    browser.click("#kbc-match")
    browser.wait_for_selector("#kbc-summary :text('The target box was given.')", timeout=120_000)
    browser.wait_for_timeout(1000)
    truth = scene.target_keypoints[:-1]
    near = [np.linalg.norm(numbers(browser)[:, c : c + 2] - truth, axis=1) < 0.1 * box.longest for c in (2, 4)]
    assert near[1].sum() > near[0].sum()  # told where the car is, more points are right than without KBC

    with browser.expect_download() as waiting:
        browser.click("#kbc-download")
    saved = json.loads(Path(waiting.value.path()).read_text())
    assert saved["given"] == ["target"]
    assert len(saved["keypoints"]) == len(truth)

    if folder := os.environ.get("KBC_SCREENSHOTS"):
        browser.screenshot(path=str(Path(folder) / "ui.png"), full_page=True)
    assert faults == []
    assert abroad == []


@pytest.mark.slow
def test_a_mistake_shows_a_message_and_the_page_goes_on(address: str, browser: Any) -> None:
    browser.goto(address)
    browser.wait_for_selector("#kbc-match", timeout=60_000)
    browser.wait_for_timeout(1000)
    browser.click("#kbc-match")
    browser.wait_for_selector("text=must be an image, received none", timeout=60_000)
    browser.click("#kbc-example")
    browser.wait_for_selector("#kbc-target img", timeout=60_000)
    browser.wait_for_function("() => document.querySelector('#kbc-points textarea').value.length > 20")
    browser.click("#kbc-match")
    browser.wait_for_selector("#kbc-picture img", timeout=120_000)
    browser.click("#kbc-clear")
    browser.wait_for_function("() => document.querySelector('#kbc-points textarea').value === ''")
