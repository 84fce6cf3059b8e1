"""What the page of `kbc ui` refuses: foreign hosts and pages, too much, files of the server; and what it leaves."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kbc.cli import ui
from kbc.cli.ui import KEPT_FILES, Server, answer, draw_example
from kbc.cli.ui_guard import MAX_UPLOAD, Guard, without_folders
from kbc.errors import InputError


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, None),
        ({"host": "localhost:7860"}, None),
        ({"host": "[::1]:7860"}, None),
        ({"host": "192.168.1.5:7860"}, None),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, None),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:3000"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "localhost", "content-length": str(MAX_UPLOAD)}, None),
        ({"host": "localhost", "content-length": str(MAX_UPLOAD + 1)}, 413),
        ({"host": "localhost", "content-length": "9" * 5000}, 413),
        ({"host": "localhost", "content-length": "-1"}, 413),
    ],
)
def test_who_may_ask(headers: dict[str, str], status: int | None) -> None:
    found = Guard(None).refused(headers)
    assert (None if found is None else found[0]) == status


def test_a_body_without_a_stated_length_ends_at_the_bound() -> None:
    taken: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            taken.append(len(message["body"]))

    async def endless() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(1_000_000), "more_body": True}

    async def nowhere(_: Any) -> None: ...

    scope = {"type": "http", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app)(scope, endless, nowhere))
    assert sum(taken) == MAX_UPLOAD


def given(tmp_path: Path, **changes: str) -> dict[str, str]:
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((40, 60, 3), np.uint8))
    return {"source": str(image), "target": str(image), "points": "3,4", "box": "", "matcher": "hog",
            "localizer": "best", "budget": "fast"} | changes  # fmt: skip


@pytest.mark.parametrize("name", ["secret.json", "secret.csv", "../secret.JSON"])
def test_the_points_field_reads_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"keypoints": [[1, 2]], "password": "xyzzy"}')
    with pytest.raises(InputError, match='`--points` must be "x,y x,y …"') as caught:
        answer(Server(tmp_path), **given(tmp_path, points=str(tmp_path / name)))
    assert "xyzzy" not in str(caught.value)


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    cv2.imwrite(str(big), np.zeros((8000, 8000), np.uint8))
    with pytest.raises(InputError, match=r"`target` must be at most 50,000,000 pixels, received 8000×8000"):
        answer(Server(tmp_path), **given(tmp_path, target=str(big)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("received '/tmp/kbc-ui-x/ab12/photo.png' (no image)", "received 'photo.png' (no image)"),
        ("C:\\Users\\me\\photo.png is broken", "photo.png is broken"),
        ("one of (h/w), 3/4", "one of (h/w), 3/4"),
    ],
)
def test_messages_name_files_without_their_folders(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_old_pictures_go(tmp_path: Path) -> None:
    for number in range(KEPT_FILES):
        draw_example(Server(tmp_path), number)
    ui._keep_newest(tmp_path)
    assert len(list(tmp_path.iterdir())) == KEPT_FILES


# The real process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    pytest.importorskip("gradio", reason="gradio is an extra")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kbc", "ui", "--no-browser"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+", line):
            yield process, found[0].rstrip("/")
            break
    process.kill()
    process.wait()


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, named), timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def announced(url: str, length: int) -> int:
    """The answer to a request that says how long it is going to be."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Length", str(length))
    connection.endheaders()
    return connection.getresponse().status


def upload(url: str, content: bytes) -> str:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/gradio_api/upload", body, kind), timeout=60) as reply:
        return str(json.load(reply)[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_serves_its_own_and_cleans_up(
    page: tuple[subprocess.Popen[str], str], tmp_path: Path, number: signal.Signals
) -> None:
    process, url = page
    assert url.startswith("http://127.0.0.1:")
    assert status(url) == 200
    assert status(url, Host="evil.example") == 403
    assert status(f"{url}/gradio_api/upload", b"", Origin="http://evil.example") == 403
    assert announced(url, MAX_UPLOAD + 1) == 413
    for path in ("/etc/passwd", str(Path(ui.__file__)), str(Path.cwd() / "pyproject.toml")):
        assert status(f"{url}/gradio_api/file={path}") in (403, 404)
    kept = Path(upload(url, cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()))
    assert tmp_path in kept.parents
    assert kept.is_file()
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    for _ in range(100):
        if not list(tmp_path.glob("kbc-ui-*")):
            break
        time.sleep(0.1)
    assert not list(tmp_path.glob("**/*.png"))
    assert not list(tmp_path.glob("kbc-ui-*"))
