"""Draw the terminal pictures of the README from a real run of pytest on the scripted project of the tests.

    python docs/images/make_pictures.py

The scripted engine (`tests/plugin/project/conftest.py`) has exact token times, so that the picture is the same on every
machine. Needs rich. `tests/test_docs.py` compares the words of the picture with a fresh run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFTEST = HERE.parents[1] / "tests" / "plugin" / "project" / "conftest.py"
PICTURE = HERE / "failure.svg"
WIDTH = 140
"""Columns: the widest row of gates fits on one line."""

TEST = """\
import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", quant="NVFP4")


@pytest.mark.inferperf(isl=128, osl=64, concurrency=8)
@pytest.mark.latency_ceiling("ttft_ms.p99", "tpot_ms.p99")
@pytest.mark.throughput_floor("output_throughput_per_user")
def test_serving(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(task="gsm8k")
@pytest.mark.accuracy_loss_ceiling(reference="BF16", points=1.0)
def test_gsm8k(inferperf):
    inferperf.evaluate()
"""
RECORDED = ("NVFP4", "BF16")
"""The precisions that are recorded: the case itself, and the reference that it is compared with."""

REGRESSION = '{"tpot_ms": 12.5}'
"""The scripted engine records 10 ms per output token, and then takes 12.5 ms."""

_DURATION = re.compile(r" in \d+\.\d+s")
_REMOTE = re.compile(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", re.DOTALL)


def run_project() -> str:
    """Record baselines, slow the engine down, run again, and return what pytest printed, in colour."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(CONFTEST, folder / "conftest.py")
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "tiny-llama").mkdir()
        (folder / "tiny-llama" / "config.json").write_text("{}")
        for quant in RECORDED:
            (folder / "test_serving.py").write_text(TEST.replace("NVFP4", quant))
            _pytest(folder, "--inferperf-update=new")
        (folder / "test_serving.py").write_text(TEST)
        (folder / "engine.json").write_text(REGRESSION)
        return _DURATION.sub("", _pytest(folder))


def _pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "--color=yes", "-p", "no:xdist", "-p", "no:cacheprovider"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CI", "BUILD_NUMBER"))}
    found = subprocess.run(
        [*command, "--benchmark-disable", *arguments],
        cwd=folder,
        env=kept | {"COLUMNS": str(WIDTH), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if found.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {found.returncode}:\n{found.stdout}{found.stderr}")
    return found.stdout.strip("\n")


def draw(output: str) -> str:
    """Turn terminal output into an SVG that loads nothing."""
    import io

    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(f"$ pytest -q\n{output}"))
    # rich's template names its fonts on a content delivery network; whatever monospace font is there will do.
    svg = _REMOTE.sub("", console.export_svg(title="pytest", unique_id="inferperf"))
    svg = svg.replace("Fira Code, monospace", "monospace")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(run_project()), encoding="utf-8")
    print(f"wrote {PICTURE.name}")
