"""The page to look at: order, names, exemplars drawn once, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from rectangles import BOXES, NAMES, picture, points_of, write_folder, write_labels

from kbc.cli import main
from kbc.labelling import Exemplar, FoundObject, Transferred
from kbc.labelling.review import review_page

NAMED = ("<b>head</b>", *NAMES[1:])
EXEMPLAR = Exemplar(picture(BOXES[0]), NAMED, points_of(BOXES[0]))


def found(path: Path, index: int, confidence: float) -> Transferred:
    points = points_of(BOXES[index])
    points[4] = np.nan
    one = FoundObject("thing", NAMED, points, np.full(5, confidence), BOXES[index], exemplar=0, window=BOXES[index])
    return Transferred(path, (120, 160), (one,))


def test_pictures_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [*write_folder(tmp_path / "a", BOXES[:2]), *write_folder(tmp_path / "b", BOXES[:2])]
    results = [found(paths[0], 0, 0.3), found(paths[3], 1, 0.6), Transferred(paths[1], (120, 160))]
    page = "".join(review_page(results, [EXEMPLAR]))
    assert re.findall(r"<h2>\d\. ([^·]*) ·", page) == ["a/0.png", "b/1.png"]
    assert "<li>a/1.png</li>" in page


def test_an_exemplar_of_one_point_is_shown_with_what_surrounds_it(tmp_path: Path) -> None:
    """As large as KBC takes its object to be; a few pixels show nobody where it is."""
    paths = write_folder(tmp_path, BOXES[:2])
    alone = Exemplar(picture(BOXES[0]), NAMED[4:], points_of(BOXES[0])[4:])  # amid the red rectangle
    page = "".join(review_page([found(paths[1], 1, 0.9)], [alone]))
    data = base64.b64decode(re.findall(r'href="data:image/jpeg;base64,([^"]+)"', page)[0])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert 0.2 < (shown[..., 2] > 200).mean() < 0.7


class Checked(HTMLParser):
    """Collects elements; every one that is opened must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.circles: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "circle":
            self.circles.append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_most_doubtful_come_first_and_nothing_is_fetched(tmp_path: Path) -> None:
    paths = write_folder(tmp_path, BOXES[:4])
    results = [found(paths[1], 1, 0.9), found(paths[2], 2, 0.3), found(paths[3], 3, 0.6)]
    results.append(Transferred(tmp_path / "a&b.png", (0, 0), error="broken <file>"))
    results.append(Transferred(tmp_path / "c.png", (120, 160), problems=("`box` must be & so on",)))
    page = "".join(review_page(results, [EXEMPLAR]))
    titles = re.findall(r"<h2>(\d\. [^·]*) ·", page)
    assert titles == ["1. 2.png", "2. 3.png", "3. 1.png"]
    assert page.count('id="exemplar-0"') == 1
    assert page.count('href="#exemplar-0"') == 2
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "<script" not in page
    assert "http" not in page
    checked = Checked()
    checked.feed(page)
    assert checked.open == []
    text = " ".join(checked.text)
    for said in ("<b>head</b>", "a&b.png", "broken <file>", "c.png", "`box` must be & so on", "0.30", "–"):
        assert said in text
    kinds = [circle["class"] for circle in checked.circles]
    assert kinds == ["known"] * 5 + ["doubtful"] * 4 + ["likely"] * 4 + ["sure"] * 4


def test_points_are_drawn_where_they_lie(tmp_path: Path) -> None:
    paths = write_folder(tmp_path, BOXES[:2])
    page = "".join(review_page([found(paths[1], 1, 0.9)], [EXEMPLAR]))
    circles = [(float(x), float(y)) for x, y in re.findall(r'class="sure" cx="([\d.]+)" cy="([\d.]+)"', page)]
    spread = np.array(circles)[1] - np.array(circles)[0]
    across = np.array(circles)[3] - np.array(circles)[2]
    assert abs(spread[0]) < 0.2  # tail is below head, right beside left, at the box's proportions
    assert spread[1] / across[0] == pytest.approx(BOXES[1].height / BOXES[1].width, rel=0.02)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    paths = write_folder(tmp_path, BOXES[:4])
    page = "".join(review_page([found(path, i, 0.5) for i, path in enumerate(paths)], [EXEMPLAR], most=2))
    assert page.count("<h2>") == 2
    assert "the 2 most doubtful shown" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    write_folder(tmp_path, BOXES[:3])
    labels = write_labels(tmp_path / "labels.json", {"0.png": BOXES[0]}, ("1.png", "2.png"))
    page, shot = tmp_path / "review.html", tmp_path / "shot.png"
    given = ["transfer", str(labels), "--out", str(tmp_path / "k.json"), "--review", str(page), "--quiet"]
    assert main(given) == 0
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += f"--disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --window-size=1400,1500"
    subprocess.run(["chromium", *flags.split(), f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)
    import cv2

    drawn = cv2.imread(str(shot))[..., ::-1].astype(int)
    red = (drawn[..., 0] > 200) & (drawn[..., 1] < 60) & (drawn[..., 2] < 60)
    assert red.sum() > 20_000  # the rectangles, close up, of two pictures and their exemplar
    labelled = (abs(drawn - [0, 158, 115]) < 12).all(axis=2)
    assert labelled.sum() > 200  # the exemplar's points, on the first card and again on the second
