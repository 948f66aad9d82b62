"""Take the screenshots of docs/report.md in headless Chromium.

    pytest suites/embedded --inferperf-json=results.json
    python docs/images/make_report_pictures.py results.json

Verdicts and flips are those of the embedded suite. The sweep is the planted one of the tests, which needs no GPU and is no
measurement. Needs the extra `html`, playwright, and a `chromium` on the PATH.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from pytest_inferperf import cli
from pytest_inferperf.report.page.write import write_page

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.report.page.planted import plant  # noqa: E402 - the tests are no package


def main(results: str) -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        cli.main(["report", results, "--html", str(folder / "embedded.html")])
        write_page(folder / "planted.html", plant(folder).page(), shown="planted.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take(
            browser,
            folder / "embedded.html",
            "report.png",
            "light",
            "body",
            height=640,
            gate="exact_match loss vs BF16",
        )
        take(browser, folder / "embedded.html", "report-flips.png", "light", "section.flips:has(.flip)", height=420)
        take(browser, folder / "planted.html", "report-frontier.png", "dark", "#case-2", height=560)
        browser.close()


def take(
    browser: Browser, page: Path, picture: str, scheme: str, selector: str, *, height: int, gate: str = ""
) -> None:
    """Filter by a gate, scroll to the first of what a selector names, unfolded, and keep what is in sight."""
    opened = browser.new_page(
        color_scheme="dark" if scheme == "dark" else "light", viewport={"width": 1100, "height": height}
    )
    opened.goto(page.as_uri())
    opened.select_option("#by-gate", gate)
    opened.evaluate(
        """(selector) => {
            const found = document.querySelector(selector);
            for (let one = found; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
            found.querySelector("details.flip")?.setAttribute("open", "");
            found.scrollIntoView();
        }""",
        selector,
    )
    opened.wait_for_timeout(3000)
    opened.screenshot(path=HERE / picture)
    opened.close()


if __name__ == "__main__":
    main(sys.argv[1])
