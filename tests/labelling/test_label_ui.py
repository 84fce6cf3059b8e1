"""The page of `kbc ui --labels`: whom it serves, and what a person does on it, in a real headless Chromium."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rectangles import BOXES, NAMES, find_red, points_of, write_folder, write_labels

import kbc
from kbc.cli import main
from kbc.cli.label_ui import MAX_BODY, LabelServer
from kbc.errors import InputError
from kbc.labelling import Labeller, Transferred, read_labels
from kbc.labelling.editing import LabelFile
from kbc.labelling.output import coco
from tests.browsers import new_page


def load(**options: Any) -> Any:
    """The matcher that "transfer the rest again" builds by the name "test_label_ui:load"."""
    return kbc.as_matcher(find_red)


def askew(source: np.ndarray, target: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """A matcher that errs, so that there is something to put right."""
    return np.asarray(find_red(source, target, keypoints) + np.array([9.0, -7.0]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rectangles, the first labelled, the points of the others askew, and an empty picture."""
    folder = tmp_path_factory.mktemp("rectangles")
    write_folder(folder)
    cv2.imwrite(str(folder / "6.png"), np.full((120, 160, 3), 100, np.uint8))
    path = write_labels(folder / "labels.json", {"0.png": BOXES[0]}, tuple(f"{i}.png" for i in range(1, 7)))
    labels = read_labels(path)
    labeller = Labeller(labels.exemplars, askew)
    pictures = sorted(labels.numbers.values())
    results = [labeller(p) if p not in labels.labelled else Transferred(p, (120, 160)) for p in pictures]
    out = folder / "keypoints.json"
    document = coco(results, labels, out, {"matcher": "hog", "options": {}, "config": {}})
    out.write_text(json.dumps(document))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "rectangles"))


@pytest.fixture
def server(folder: Path) -> Iterator[LabelServer]:
    made_by = {"matcher": "test_label_ui:load", "options": {}}
    found = LabelServer(LabelFile(folder / "keypoints.json"), made_by, port=0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def written(folder: Path) -> dict[int, dict[str, Any]]:
    """Annotations by picture's number; picture `n`.png is number n + 1."""
    data = json.loads((folder / "keypoints.json").read_text())
    return {one["image_id"]: one for one in data["annotations"]}


def ask(server: LabelServer, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        named = {"Content-Type": "application/json", **named}
    connection.request("GET" if body is None else "POST", path, body, named)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_page_its_state_and_its_pictures(server: LabelServer) -> None:
    status, page = ask(server, "/")
    assert status == 200
    assert b"http://" not in page.replace(b"http://www.w3.org", b"")
    state = json.loads(ask(server, "/state")[1])
    assert state["file"] == "keypoints.json"
    assert len(state["objects"]) == 7
    status, data = ask(server, "/image/2")
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (120, 160, 3)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"matcher": "test_label_ui:burn", "options": {"mark": "burnt"}}, "named on the command line"),
        ({"matcher": "chm", "options": {"checkout": ".", "checkpoint": "a.pth"}}, "named on the command line"),
        ({"matcher": 5}, "field 'matcher'"),
        ({"options": "x"}, "field 'options'"),
        ({"config": [1]}, "field 'config'"),
        ({"instances": "many"}, "field 'instances'"),
        ({"options": {"name": 5}}, "'name'"),
        ({"config": {"passes": 10**9}}, "`passes`"),
    ],
)
def test_no_code_runs_that_a_file_names(folder: Path, said: dict[str, Any], why: str) -> None:
    data = json.loads((folder / "keypoints.json").read_text())
    data["info"]["kbc"] = json.loads(json.dumps(said).replace("burnt", str(folder / "burnt")))
    (folder / "keypoints.json").write_text(json.dumps(data))
    server = LabelServer(LabelFile(folder / "keypoints.json"), port=0)
    with pytest.raises(InputError, match=why):
        server.transfer_again()
    server.server_close()
    assert not (folder / "burnt").exists()


def burn(mark: str) -> Any:
    """What a file must not be able to call."""
    Path(mark).touch()
    return kbc.as_matcher(find_red)


@pytest.mark.parametrize("said", [5, None, {"kbc": 5}, {"kbc": {"labels": "x"}}])
def test_what_a_file_says_of_itself_may_be_anything(folder: Path, said: Any) -> None:
    data = json.loads((folder / "keypoints.json").read_text())
    (folder / "keypoints.json").write_text(json.dumps({**data, "info": said}))
    server = LabelServer(LabelFile(folder / "keypoints.json"), port=0)
    server.transfer_again()
    while server.again.running:
        time.sleep(0.01)
    server.server_close()
    assert server.again.state() == {"running": False, "done": 6, "total": 6, "error": ""}
    assert json.loads((folder / "keypoints.json").read_text())["info"]["kbc"]["labels"] == "keypoints.json"


def test_pictures_that_fail_are_told(folder: Path) -> None:
    made_by = {"matcher": "test_label_ui:fail", "options": {}}
    server = LabelServer(LabelFile(folder / "keypoints.json"), made_by, port=0)
    server.transfer_again()
    while server.again.running:
        time.sleep(0.01)
    server.server_close()
    assert server.again.state()["error"].startswith("6 pictures of 6 kept as before, for instance")
    assert "out of order" in server.again.error


def fail() -> Any:
    """A matcher that never answers."""

    def never(source: Any, target: Any, keypoints: Any) -> Any:
        raise RuntimeError("out of order")

    return kbc.as_matcher(never)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/state", None, {"Host": "evil.example"}, 403),
        ("/image/1", None, {"Sec_Fetch_Site": "cross-site"}, 403),
        ("/save", b"{}", {"Origin": "http://evil.example"}, 403),
        ("/save", b"{}", {"Content_Type": "text/plain"}, 415),
        ("/save", b"{}", {}, 400),
        ("/save", b'{"id": 2, "keypoints": [[NaN, 1, 2]]}', {}, 400),
        ("/remove", b'{"id": true}', {}, 400),  # which is no number 1
        ("/remove", b'{"id": "1"}', {}, 400),
        ("/save", b'{"id": 2, "keypoints": [[1, 1, 7]]}', {}, 400),
        ("/save", b"x" * (MAX_BODY + 1), {}, 413),
        ("/remove", b'{"id": 77}', {}, 400),
        ("/nothing", b"{}", {}, 404),
        ("/image/../keypoints.json", None, {}, 400),
        ("/image/77", None, {}, 400),
        ("/label_ui.py", None, {}, 404),
        ("/keypoints.json", None, {}, 404),
    ],
)
def test_what_is_not_the_pages_own_is_refused(
    server: LabelServer, folder: Path, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    before = (folder / "keypoints.json").read_bytes()
    try:
        found, text = ask(server, path, body, **headers)
    except (BrokenPipeError, ConnectionResetError):  # it hung up before all of a body that is too large was sent
        assert status == 413
    else:
        assert found == status
        assert json.loads(text)["error"]
    assert (folder / "keypoints.json").read_bytes() == before


def test_no_answer_says_where_the_pictures_lie(server: LabelServer, folder: Path) -> None:
    (folder / "1.png").write_bytes(b"broken")
    status, text = ask(server, "/image/2")
    assert status == 400
    assert "1.png" in text.decode()
    assert str(folder) not in text.decode()
    assert server.server_address[0] == "127.0.0.1"


def test_what_is_wrong_is_said_before_the_page_opens(
    folder: Path, server: LabelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.json").write_text("{}")
    port = str(server.server_address[1])
    for given, said in (
        (["--labels", str(folder / "no.json")], "no.json"),
        (["--labels", str(folder / "broken.json")], "broken.json"),
        (["--labels", str(folder / "keypoints.json"), "--port", port], "--port"),
        (["--root", str(folder)], "--labels"),
        (["--labels", str(folder / "keypoints.json"), "--option", "size=5"], "together with --matcher"),
    ):
        assert main(["ui", "--no-browser", *given]) != 0
        assert said in capsys.readouterr().err


# In the browser -------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(server: LabelServer, tmp_path: Path) -> Iterator[Any]:
    faults: list[str] = []
    with new_page(tmp_path / "profile", 1300, 800) as opened:
        opened.on("pageerror", lambda error: faults.append(str(error)))
        refused = "the server responded with a status of 400"  # which the page says itself
        opened.on("console", lambda m: faults.append(m.text) if m.type == "error" and refused not in m.text else None)
        opened.on("request", lambda r: faults.append(r.url) if not r.url.startswith((server.url, "data:")) else None)
        opened.goto(server.url)
        opened.wait_for_selector("#list li.here")
        yield opened
    assert faults == []


def screen(page: Any, point: np.ndarray) -> tuple[float, float]:
    """Where a point of the picture is on the screen."""
    return tuple(
        page.evaluate(
            """([x, y]) => { const p = new DOMPoint(x + 0.5, y + 0.5)
            .matrixTransform(document.querySelector('#picture').getScreenCTM()); return [p.x, p.y]; }""",
            point.tolist(),
        )
    )


def drag(page: Any, index: int, to: np.ndarray) -> None:
    """A point's handle to a place of the picture, with the mouse."""
    box = page.locator(f"#picture circle[data-index='{index}']").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(*screen(page, to), steps=6)
    page.mouse.up()


def go_to(page: Any, name: str) -> None:
    page.click(f"#list li:has(span[title='{name}'])")
    page.wait_for_function("n => document.querySelector('#title').textContent.startsWith(n)", arg=name)
    page.wait_for_timeout(300)


def saved(page: Any) -> None:
    page.wait_for_function("() => document.querySelector('#saved').textContent === 'saved'")


def screenshot(page: Any, name: str) -> None:
    if folder := os.environ.get("KBC_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.mark.slow
def test_points_are_dragged_marked_saved_and_transferred_again(page: Any, folder: Path) -> None:
    """A person's way: the most doubtful object, its points dragged, one hidden, one gone; then the rest again."""
    order = page.eval_on_selector_all("#list li span.name", "all => all.map(one => one.textContent)")
    assert order[0] == "6.png"  # nothing was found in it
    assert order[-1] == "0.png"  # labelled before
    go_to(page, "3.png")
    screenshot(page, "labels-before")
    truth = points_of(BOXES[3])
    for index in range(5):
        drag(page, index, truth[index])
    saved(page)
    page.click("#points li:nth-child(2)")
    page.keyboard.press("o")
    page.click("#points li:nth-child(5)")
    page.keyboard.press("Delete")
    page.wait_for_timeout(600)
    saved(page)
    screenshot(page, "labels-after")
    one = written(folder)[4]
    rows = np.array(one["keypoints"]).reshape(-1, 3)
    assert rows[:, 2].tolist() == [2, 1, 2, 2, 0]
    assert np.abs(rows[:4, :2] - truth[:4]).max() < 0.5  # a screen pixel is less than half of the picture's here
    assert one["labelled"] is True

    others = {number: row for number, row in written(folder).items() if number not in (1, 4)}
    assert np.abs(np.array(others[3]["keypoints"]).reshape(-1, 3)[:, :2] - points_of(BOXES[2])).max() > 4
    page.click("#transfer")
    page.wait_for_function("() => document.querySelector('#progress').textContent.startsWith('done')", timeout=120_000)
    after = written(folder)
    assert after[4] == one
    for number in (2, 3, 5, 6):
        found = np.array(after[number]["keypoints"]).reshape(-1, 3)
        assert np.abs(found[:, :2] - points_of(BOXES[number - 1])).max() < 1
        assert not after[number]["labelled"]
    screenshot(page, "labels-again")


@pytest.mark.slow
def test_keys_go_through_the_list_and_confirm(page: Any, folder: Path) -> None:
    def title() -> str:
        return str(page.inner_text("#title"))

    def pressed(key: str) -> str:
        before = title()
        page.keyboard.press(key)
        page.wait_for_function("t => document.querySelector('#title').innerText !== t", arg=before)
        return title()

    order = page.eval_on_selector_all("#list li span.name", "all => all.map(one => one.textContent)")
    assert title().startswith(order[0])
    assert pressed("n").startswith(order[1])
    assert pressed("ArrowRight").startswith(order[2])
    assert pressed("p").startswith(order[1])
    before = written(folder)
    assert pressed("Enter").startswith(order[2])
    number = int(order[1][0]) + 1
    after = written(folder)
    assert after[number]["labelled"] is True
    assert after[number]["keypoints"] == before[number]["keypoints"]
    assert {n: one for n, one in after.items() if n != number} == {n: o for n, o in before.items() if n != number}
    assert pressed("p").startswith(order[1])
    page.keyboard.press("u")
    page.wait_for_function("() => !document.querySelector('#list li.here b').textContent.startsWith('done')")
    assert written(folder) == before


@pytest.mark.slow
def test_an_object_that_was_not_found_is_set_by_clicks_and_undone(page: Any, folder: Path) -> None:
    assert page.inner_text("#title").startswith("6.png")
    places = np.array([[40.0, 20.0], [40.0, 90.0], [20.0, 50.0], [60.0, 50.0], [40.0, 55.0]])
    for place in places:
        page.mouse.click(*screen(page, place))
    page.wait_for_timeout(700)
    saved(page)
    rows = np.array(written(folder)[7]["keypoints"]).reshape(-1, 3)
    assert np.abs(rows[:, :2] - places).max() < 0.5
    assert written(folder)[7]["labelled"] is True
    page.click("#undo")
    page.wait_for_selector("#message:not([hidden])")
    assert "remove it instead" in page.inner_text("#message")
    page.click("#zoom")
    drag(page, 0, np.array([100.0, 100.0]))
    page.wait_for_timeout(700)
    assert abs(written(folder)[7]["keypoints"][0] - 100) < 1
    page.click("#remove")
    page.wait_for_function("() => document.querySelector('#list li b').textContent === 'none'")
    assert 7 not in written(folder)


@pytest.mark.slow
def test_a_changed_file_is_said_and_not_written_over(page: Any, folder: Path) -> None:
    data = json.loads((folder / "keypoints.json").read_text())
    (folder / "keypoints.json").write_text(json.dumps(data, indent=1))
    before = (folder / "keypoints.json").read_bytes()
    go_to(page, "2.png")
    drag(page, 0, points_of(BOXES[2])[0])
    page.wait_for_selector("#message:not([hidden])")
    assert "changed by this page alone" in page.inner_text("#message")
    assert (folder / "keypoints.json").read_bytes() == before


def test_what_cannot_be_written_is_said(server: LabelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/a/keypoints.json")

    monkeypatch.setattr("kbc.labelling.editing.write_json", full)
    status, body = ask(server, "/remove", b'{"id": 2}')
    assert (status, json.loads(body)) == (500, {"error": "No space left on device"})


def test_every_point_has_a_name(server: LabelServer) -> None:
    state = json.loads(ask(server, "/state")[1])
    assert {tuple(one["names"]) for one in state["objects"]} == {NAMES}
