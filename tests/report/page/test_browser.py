"""The page in a browser: headless Chromium opens it from the disk, and is told to use no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pytest_inferperf.report.page.write import write_page
from tests.report.page.planted import NEEDLE, SECRET, plant

CHROMIUM = ("chromium", "google-chrome")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the planted run."""
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    write_page(path, plant(folder).page(), shown="report.html")
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window. Where none is installed, tests fail: a page that nobody opened is not tested."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.fail(
            f"no browser on the PATH (looked for {', '.join(CHROMIUM)}): install one, such as by `make chromium`",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        # Containers run as root, where Chromium has no sandbox; what it opens is our own file.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page that is open, and everything it said and asked for."""

    def __init__(self, browser: Browser, path: Path, scheme: str = "light") -> None:
        self.context = browser.new_context(color_scheme=scheme, offline=True)  # type: ignore[arg-type]
        # Generous: CI machines are shared.
        self.context.set_default_timeout(120_000)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def shown(self, selector: str) -> list[str]:
        """Return the texts of what is visible, each on one line."""
        return [" ".join(one.inner_text().split()) for one in self.page.locator(selector).all() if one.is_visible()]


@pytest.fixture
def opened(chromium: Browser, written: Path) -> Iterator[Opened]:
    """The page, open."""
    page = Opened(chromium, written)
    yield page
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_word_and_asks_for_nothing(chromium: Browser, written: Path, scheme: str) -> None:
    opened = Opened(chromium, written, scheme)
    opened.page.locator("#case-1 .plot").first.scroll_into_view_if_needed()
    opened.page.locator("#case-1 .plot svg.main-svg").first.wait_for()
    assert opened.said == []
    assert opened.asked == [written.as_uri()]
    assert "FAIL" in opened.page.title()
    opened.context.close()


def test_the_requests_of_a_run_are_drawn(opened: Opened) -> None:
    plot = opened.page.locator('#case-1 figure:has-text("ttft_ms: every request") .plot')
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    assert plot.locator(".legendtext").all_text_contents() == ["this run: every request", "baseline: p50 to p99"]
    assert opened.said == []


def test_it_is_small(written: Path) -> None:
    assert written.stat().st_size < 6_000_000


def test_filters(opened: Opened) -> None:
    assert len(opened.shown("#table tbody tr")) == 9
    opened.page.select_option("#by-verdict", "PASS")
    assert {row.split()[0] for row in opened.shown("#table tbody tr")} == {"PASS"}
    opened.page.select_option("#by-verdict", "")
    opened.page.select_option("#by-gate", "ttft_ms.p99")
    assert len(opened.shown("#table tbody tr")) == 2
    assert opened.shown("#count") == ["2 of 9 gates"]
    opened.page.keyboard.press("Escape")
    assert opened.shown("#count") == ["9 of 9 gates"]


def test_a_flipped_document_is_found(opened: Opened) -> None:
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("river runs")
    (flip,) = opened.shown("details.flip")
    assert flip.startswith("lost document 7")
    assert NEEDLE in flip
    assert "the Vltava" in flip
    assert {row.split()[1] for row in opened.shown("#table tbody tr")} == {"test_answers.py::test_facts[NVFP4]"}


def test_the_keyboard_walks_from_the_table_to_a_case(opened: Opened) -> None:
    opened.page.locator("#table a").first.focus()
    for _ in range(7):
        opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_function("document.activeElement.closest('details')?.id === 'case-5'")
    assert opened.page.locator("#case-5[open]").count() == 1


def test_paper_shows_everything_dark_on_light(chromium: Browser, written: Path) -> None:
    opened = Opened(chromium, written, "dark")
    opened.page.wait_for_function("window.Plotly")
    background = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(background)
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details:not([open])").count() == 0
    assert opened.page.locator(".plot:not([data-drawn])").count() == 0
    assert opened.page.evaluate(background) == "rgb(255, 255, 255)"
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.evaluate(background) == before != "rgb(255, 255, 255)"
    assert opened.page.locator("details:not([open])").count() > 0
    opened.context.close()


def test_markup_in_names_and_answers_stays_text(opened: Opened) -> None:
    opened.page.locator("#case-4 .plot").first.scroll_into_view_if_needed()
    opened.page.locator("#case-4 .plot svg.main-svg").first.wait_for()
    assert opened.page.locator("img").count() == 0
    assert opened.page.title() != "owned"
    assert opened.page.locator("body script:not([type])").count() == 1
    assert "onerror=" in opened.page.locator("#case-4 > summary").inner_text()


def test_no_secret_reaches_the_file(written: Path) -> None:
    text = written.read_text()
    assert SECRET not in text
    assert "[hidden]" in text
