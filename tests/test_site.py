"""The documentation site: built with warnings as errors, then every page opened in a Chromium on a desktop and a phone.

With KBC_SCREENSHOTS=folder the pages are left there as pictures to look at.
"""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsers import chromium

ROOT = Path(__file__).parent.parent
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}

pytestmark = pytest.mark.slow

PROBLEMS = """() => {
    const problems = [];
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    if (wide > 1) problems.push(`the page is ${wide} px wider than the screen`);
    for (const image of document.querySelectorAll("article img"))
        if (!image.complete || image.naturalWidth === 0) problems.push(`no picture: ${image.src}`);
    for (const image of document.querySelectorAll("article img"))
        if (!image.alt) problems.push(`a picture without a description: ${image.src}`);
    for (const object of document.querySelectorAll(".doc-object")) {
        const text = object.innerText.replace(object.querySelector(".doc-heading")?.innerText ?? "", "").trim();
        if (!text) problems.push(`an empty entry: ${object.innerText.trim()}`);
    }
    for (const name of document.querySelectorAll(".doc-object td:first-child"))
        if (name.innerText.trim().endsWith(",")) problems.push(`half an entry: ${name.innerText.trim()}`);
    for (const quote of document.querySelectorAll("blockquote blockquote blockquote"))
        problems.push(`an example that is no code: ${quote.innerText.slice(0, 60)}`);
    if (document.querySelector("article").innerText.includes("<!--")) problems.push("a comment that was not filled in");
    return problems;
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install kbc[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_parameter_and_command_is_on_the_site(site: Path) -> None:
    from kbc.cli import COMMANDS
    from kbc.config import KBCConfig

    api, commands = ((site / page / "index.html").read_text(encoding="utf-8") for page in ("api", "cli"))
    assert all(f"<code>{field}</code>" in api for field in KBCConfig.model_fields)
    assert all(f'id="kbc-{name}"' in commands for name in COMMANDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as (browser, options):
        opened = browser.launch(**options)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on standard error for every file."""

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("screen", SCREENS)
def test_every_page_is_whole_and_fits_the_screen(site: Path, address: str, browser: Any, screen: str) -> None:
    width, height = SCREENS[screen]
    tab = browser.new_page(viewport={"width": width, "height": height})
    failed: list[str] = []
    tab.on("pageerror", lambda error: failed.append(f"script: {error}"))
    pages = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    assert len(pages) > 30
    problems = {}
    for page in pages:
        tab.goto(f"{address}{page}/", wait_until="load")
        found = tab.evaluate(PROBLEMS) + failed
        failed.clear()
        if found:
            problems[page] = found
        if folder := os.environ.get("KBC_SCREENSHOTS"):
            name = f"{page.replace('/', '_').replace('.', 'index')}-{screen}.png"
            tab.screenshot(path=Path(folder) / name)
    tab.close()
    assert not problems


@pytest.mark.parametrize("word", ["budget", "localizer", "coordinates", "DINOv3"])
def test_the_search_finds(address: str, browser: Any, word: str) -> None:
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(address, wait_until="load")
    tab.locator(".md-search__input").first.click()
    tab.locator(".md-search__input").first.fill(word)
    tab.locator(".md-search-result__item").first.wait_for(timeout=30_000)
    assert word.lower() in tab.locator(".md-search-result__list").inner_text().lower()
    tab.close()
