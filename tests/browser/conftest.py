"""A browser, if there is one: CHROMIUM names it."""

import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

# The measurements that the pages show.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "reports"))

_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Generator[Any]:
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not Path(path).is_file():
        pytest.skip(f"no Chromium at {path}: install it, or name it in CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Generator[Callable[..., Any]]:
    """Open a page; in the end nothing may have been requested but itself, and nothing may have gone wrong."""
    contexts: list[Any] = []
    problems: list[str] = []
    requests: list[str] = []
    visited: list[str] = []

    def opened(path: Path, width: int = 1280, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.on("request", lambda request: requests.append(request.url))
        visited.append(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []
    assert requests == visited
