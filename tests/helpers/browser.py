"""A headless browser, Debian's chromium, and what it says of a page."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@dataclass(frozen=True)
class Rendered:
    """What a browser made of a page: title, text, pictures that did not load, messages, addresses.

    ``addresses`` are those of other files that the page wants,
    ``colours`` those of the text on a light and on a dark screen.
    """

    title: str
    text: str
    pictures: int
    broken: list[str]
    messages: list[str]
    addresses: list[str]
    colours: tuple[str, str]


class Browser:
    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def render(self, page: Path) -> Rendered:
        driver = self._driver
        driver.get_log("browser")  # drops what other pages said
        driver.get(page.as_uri())
        colours = []
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            colours.append(driver.execute_script("return getComputedStyle(document.body).color"))
        return Rendered(
            driver.title,
            driver.execute_script("return document.body.innerText"),
            driver.execute_script("return document.images.length"),
            driver.execute_script(
                "return [...document.images].filter(i => !i.complete || !i.naturalWidth)"
                ".map(i => i.alt)"
            ),
            [entry["message"] for entry in driver.get_log("browser")],
            driver.execute_script(
                "return [...document.querySelectorAll('[src],[href]')]"
                ".map(e => e.getAttribute('src') ?? e.getAttribute('href'))"
                ".filter(address => !address.startsWith('data:'))"
            ),
            (colours[0], colours[1]),
        )


def start_browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is the empty ``folder``; skips where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver, which `make setup` installs")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install it")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options, service) as chrome:
        yield Browser(chrome)
