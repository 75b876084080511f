"""A browser, if there is one: CHROMIUM names it."""

import os
import sys
from collections.abc import Generator
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
