"""A tab of a real Chromium with the page in it, which fails for whatever went wrong in it or came from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_driver import SCRIPTED
from server_process import ServerProcess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Not longer: while it is open, Playwright's event loop runs in the thread in which other tests want one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need pip install playwright")
    if CHROMIUM is None:
        pytest.skip("the page's tests need Chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, server: ServerProcess) -> Iterator[Callable[..., Any]]:
    """Opens the page, of `url` or else of the shared server, in a browser of its own, with the options of Playwright's
    contexts; wide unless they say so."""
    contexts, faults = [], []

    def open_page(url: str = server.url, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        context.add_init_script(SCRIPTED)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        ours = (url, "data:", f"blob:{url}")
        page.on("request", lambda request: None if request.url.startswith(ours) else faults.append(request.url))
        page.set_default_timeout(60_000)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()
