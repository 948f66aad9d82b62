"""Loading the plugin costs a project that does not use it nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "modelopt",
    "lm_eval",
    "tensorrt_llm",
    "numpy",
    "scipy",
    "jsonschema",
    "filelock",
    "pynvml",
    "jinja2",
    "plotly",
    "fsspec",
    "s3fs",
    "ray",
)
OURS = (
    "fixture",
    "cluster",
    "placement",
    "marks",
    "settings",
    "judging",
    "engines",
    "baselines",
    "evaluate",
    "measure",
    "gates",
    "report",
)


def modules_after(code: str, folder: Path) -> set[str]:
    script = f"{code}\nimport json, sys\nprint('MODULES', json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    return set(json.loads(line.removeprefix("MODULES")))


def test_importing_the_plugin(tmp_path: Path) -> None:
    loaded = modules_after("import pytest_inferperf.plugin", tmp_path)
    assert not loaded & set(HEAVY)
    assert not {f"pytest_inferperf.{name}" for name in OURS} & loaded


def test_running_a_project_that_does_not_use_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    run = "import pytest; assert pytest.main(['-q', '-p', 'no:benchmark', '-p', 'no:cacheprovider']) == 0"
    loaded = modules_after(run, tmp_path)
    assert "pytest_inferperf.plugin" in loaded
    assert not loaded & set(HEAVY)
    assert not {f"pytest_inferperf.{name}" for name in OURS} & loaded


def test_no_git_and_no_subprocess_where_it_is_not_used(tmp_path: Path) -> None:
    """A process started or a socket opened while pytest runs an empty project would be ours."""
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    guard = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(event)"
        " if event in ('subprocess.Popen', 'os.system', 'os.exec', 'socket.connect') else None)\n"
        "import pytest; pytest.main(['-q', '-p', 'no:benchmark', '-p', 'no:cacheprovider'])\n"
        "assert not seen, seen"
    )
    assert "pytest_inferperf.plugin" in modules_after(guard, tmp_path)


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "judging",
        "marks.cases",
        "settings",
        "fixture",
        "evaluate.run",
        "engines.launch",
        "engines.process",
        "measure.session",
    ],
)
def test_no_module_of_the_parent_process_imports_torch(module: str, tmp_path: Path) -> None:
    loaded = modules_after(f"import pytest_inferperf.{module}", tmp_path)
    assert not loaded & {"torch", "transformers", "modelopt", "lm_eval", "tensorrt_llm", "pynvml"}
