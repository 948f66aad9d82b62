"""What is installed: the package alone, its entry points, and what the schemas and types need beside the code."""

from __future__ import annotations

import importlib.metadata
from importlib.resources import files

DISTRIBUTION = importlib.metadata.distribution("pytest-inferperf")


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    found = {path.parts[0] for path in DISTRIBUTION.files or () if ".." not in path.parts}
    ours = {name for name in found if not name.endswith((".dist-info", ".pth"))}
    # An editable install, for development, lists no package files at all.
    assert ours <= {"pytest_inferperf"}


def test_entry_points() -> None:
    found = {(item.group, item.name, item.value) for item in DISTRIBUTION.entry_points}
    assert found == {
        ("pytest11", "inferperf", "pytest_inferperf.plugin"),
        ("console_scripts", "inferperf", "pytest_inferperf.cli:main"),
    }


def test_data_files_are_there() -> None:
    package = files("pytest_inferperf")
    assert {item.name for item in (package / "report" / "page").iterdir()} >= {"page.css", "page.html", "page.js"}
    assert (package / "py.typed").is_file()
    schemas = {item.name for item in (package / "baselines" / "schema").iterdir()}
    assert schemas >= {"accuracy.schema.json", "performance.schema.json", "result.schema.json"}


def test_metadata_says_what_it_is() -> None:
    metadata = DISTRIBUTION.metadata
    assert {"Framework :: Pytest", "Typing :: Typed"} <= set(metadata.get_all("Classifier") or ())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or ()) == {
        "cluster",
        "dev",
        "embedded",
        "history",
        "html",
        "records",
        "server",
        "storage",
        "tensorrt-llm",
    }
