"""What does the installed, unused plugin cost a project? Alternates pytest with and without it on an empty project.

Run with the interpreter whose environment has the plugin: `python benchmarks/plugin_overhead.py`. pytest-benchmark is off
in both. Prints the medians, their difference, and which heavy modules were imported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMON = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "no:xdist")
HEAVY = ("torch", "transformers", "modelopt", "lm_eval", "numpy", "scipy", "jsonschema")


def run(folder: str, *arguments: str) -> float:
    """Run pytest once; return its wall time in milliseconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *COMMON, *arguments], cwd=folder, capture_output=True, check=False)
    return 1000 * (time.perf_counter() - start)


def heavy_modules(folder: str) -> list[str]:
    """Return the heavy modules that are loaded after a pytest run with the plugin."""
    code = (
        "import json, sys, pytest; pytest.main(sys.argv[1:]); "
        f"print('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMON[2:]], cwd=folder, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Alternate both ways and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="Runs of each, after one that is not counted")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_it.py").write_text("def test_it(): pass\n")
        run(folder)
        run(folder, "-p", "no:inferperf")
        pairs = [(run(folder), run(folder, "-p", "no:inferperf")) for _ in range(runs)]
        heavy = heavy_modules(folder)
    with_plugin, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    difference = statistics.median(one - other for one, other in pairs)
    print(f"with the plugin     {with_plugin:7.1f} ms   (median of {runs})")
    print(f"-p no:inferperf     {without:7.1f} ms")
    print(f"difference          {difference:7.1f} ms   (median of pairwise differences; the limit is 30 ms)")
    print(f"heavy modules loaded: {', '.join(heavy) or 'none'}")


if __name__ == "__main__":
    main()
