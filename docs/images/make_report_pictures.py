"""Take the screenshots of docs/report.md in headless Chromium.

    pytest suites/embedded --inferperf-json=results.json
    python docs/images/make_report_pictures.py results.json

Verdicts and flips are those of the embedded suite. The sweep is measured here, over the simulated server: once as it is,
for the baseline, and once where each stream slows the others down more. Needs the extra `html`, playwright, and a
`chromium` on the PATH, and a machine that is quiet for some minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from pytest_inferperf import cli
from pytest_inferperf.simulate.behaviour import Behaviour
from pytest_inferperf.simulate.server import serve_in_thread

HERE = Path(__file__).resolve().parent
SWEEP = """
import pytest
from pytest_inferperf import sweep

@pytest.mark.inferperf(
    sweep(concurrency=[1, 4, 16, 64]), model="simulated", url="URL", engine_options={"request_model": "simulated"}, isl=32,
    osl=64, rounds=2, warmup_rounds=0,
)
@pytest.mark.frontier_floor("output_throughput", over="output_throughput_per_user", tolerance=0.05)
def test_interactivity(inferperf):
    inferperf.measure()
"""


def main(results: str) -> None:
    """Make all pictures."""
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        cli.main(["report", results, "--html", str(folder / "embedded.html")])
        measure_sweep(folder)
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
        take(browser, folder / "sweep.html", "report-frontier.png", "dark", "#case-1", height=560)
        browser.close()


def measure_sweep(folder: Path) -> None:
    """Record the frontier of the simulated server, slow the server down, and write the page of the run that finds it."""
    # The server waits and computes nothing: what runs beside it takes no time from it.
    (folder / "pytest.ini").write_text("[pytest]\ninferperf_max_interference = 1\n")
    environment = {**os.environ, "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org"}
    port = 0
    for slowdown, options in (
        (0.03, ["--inferperf-update=new"]),
        (0.045, [f"--inferperf-html={folder / 'sweep.html'}"]),
    ):
        with serve_in_thread(Behaviour(slowdown=slowdown), port=port) as server:
            port = int(server.url.rpartition(":")[2])
            (folder / "test_serving.py").write_text(SWEEP.replace("URL", server.url))
            # It fails both times: what has no baseline, and what has fallen below it.
            subprocess.run([sys.executable, "-m", "pytest", "-q", *options], cwd=folder, env=environment, check=False)


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
