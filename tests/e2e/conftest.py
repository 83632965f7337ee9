"""What the end-to-end tests share: `make run` in a terminal, once, and its page in a browser.

Without chromium, make or setsid a test is skipped on a developer's machine and fails in CI (`CI=true`).
`SKALDS_E2E_SCREENSHOTS` names a directory that takes pictures of the page.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.terminal import Terminal

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_S = 90.0
WINDOW = {"width": 1280, "height": 800}


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        _missing(f"{', '.join(missing)} not found")


def _missing(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: needed in CI")
    pytest.skip(what)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """`make run`, ready, shared by the tests of a module. One of them may end it, as its last."""
    need("make", "setsid")
    data_dir = tmp_path_factory.mktemp("make-run")
    running = Terminal(["make", "run", f"ARGS=--data-dir {data_dir}"])
    try:
        running.wait_for(r"Ctrl-C stops everything", START_S)
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def open_page(terminal: Terminal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The status page in a browser with a profile of its own."""
    need(CHROMIUM)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        _missing(str(error))
    address = terminal.wait_for(r"Status page\s+(http://\S+)", 1)[1]
    with sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"),
            executable_path=CHROMIUM,
            args=list(CHROMIUM_OPTIONS),
            viewport=WINDOW,
        )
        page = browser.pages[0]
        page.goto(address)
        yield page
        browser.close()


@pytest.fixture
def page(open_page: Page) -> Iterator[Page]:
    """The page, live and without a fault for the whole test: not loaded again, no script error."""
    errors: list[str] = []
    on_error: Callable[..., None] = lambda error: errors.append(str(error))  # noqa: E731
    open_page.on("pageerror", on_error)
    open_page.evaluate("window.sinceTheTestBegan = true")
    yield open_page
    open_page.remove_listener("pageerror", on_error)
    assert open_page.evaluate("window.sinceTheTestBegan") is True, "the page was loaded again"
    assert errors == []


@pytest.fixture
def picture(page: Page, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a picture of the whole page under this name, where pictures are wanted."""

    def keep(name: str) -> None:
        directory = os.environ.get("SKALDS_E2E_SCREENSHOTS")
        if directory:
            Path(directory).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(directory) / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.png", full_page=True)

    return keep
