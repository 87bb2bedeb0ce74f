"""A real browser: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from web_helpers import Problems

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # not longer: while Playwright runs, its thread can have no other event loop
def browser() -> Iterator[Any]:
    """Chromium, without a window; `CHROMIUM` in the environment names another one."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: install one of {', '.join(BROWSERS)}, or name it by CHROMIUM=PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        # Containers have a small /dev/shm, and Playwright starts without a sandbox, which root needs.
        arguments = ["--disable-dev-shm-usage"]
        chromium = driver.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def problems() -> Iterator[Problems]:
    """What the test's pages complain of; a test says by `problems.expect(TEXT)` what it provokes."""
    problems = Problems()
    yield problems
    assert not problems.unexpected, "\n".join(problems.unexpected)
    assert not problems.missing, f"expected, but did not come: {problems.missing}"


@pytest.fixture
def new_page(browser: Any, problems: Problems) -> Iterator[Callable[..., Any]]:
    """Opens a page with storage of its own; arguments are Playwright's for a context, such as locale="zh-CN"."""
    contexts = []

    def new(**options: Any) -> Any:
        options = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options}
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        problems.watch(context)
        return context.new_page()

    yield new
    for context in contexts:
        context.close()


@pytest.fixture
def page(new_page: Callable[..., Any]) -> Any:
    return new_page()
