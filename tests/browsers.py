"""A headless Chromium for the tests of pages; they are skipped where it or playwright is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


@contextmanager
def chromium() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Playwright's Chromium, and the options with which it is launched here."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        yield driver.chromium, {"executable_path": path, "headless": True, "args": list(FLAGS)}


@contextmanager
def new_page(profile: Path, width: int, height: int) -> Iterator[Any]:
    """A page of a browser that knows nothing of others, whose profile lies in a new folder."""
    with chromium() as (browser, options):
        viewport = {"width": width, "height": height}
        context = browser.launch_persistent_context(str(profile), viewport=viewport, **options)
        yield context.new_page()
        context.close()
