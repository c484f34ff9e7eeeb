"""What the tests of both pages share: a browser, and a record of what goes wrong on a page."""

import os
import pathlib
import shutil

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = pathlib.Path("browser")


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "no Chromium: apt install chromium, or set $CHROMIUM to its path"
    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"])
        yield chromium
        chromium.close()


def watch(page, *allowed):
    """A list that gets the page's errors, and its requests to addresses that do not begin with one of `allowed`."""
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith(allowed) or wrong.append(request.url))
    page.on("console", lambda said: said.type == "error" and "status of 4" not in said.text and wrong.append(said.text))
    return wrong
