"""A user's project whose engine is a server: the shipped backends, and a simulated server's URL in the mark."""

from __future__ import annotations

import importlib

import pytest

for _name in (
    "engines.launch",
    "engines.openai.engine",
    "engines.openai.served",
    "measure.serving",
    "measure.load.arrivals",
    "measure.load.rounds",
):
    importlib.import_module(f"pytest_inferperf.{_name}")


class ServedProject:
    """Writes tests of one engine and runs them."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        pytester.makeini(
            "[pytest]\naddopts = --strict-markers --strict-config -p no:cacheprovider -p no:xdist\n"
            "inferperf_max_interference = 1\ninferperf_max_throttled = 1\ninferperf_min_clock = 0\n"
        )
        model = self.path / "tiny-llama"
        model.mkdir()
        (model / "config.json").write_text("{}")

    @staticmethod
    def at(url: str) -> str:
        """Return the keywords of an engine at a simulated server."""
        return f'url={url!r}, engine_options={{"request_model": "simulated"}}'

    def test(self, keywords: str, *marks: str, body: str = "inferperf.measure()") -> None:
        """Write `test_it.py`: an `inferperf` mark with these keywords, and gates."""
        decorators = "\n".join(
            f"@pytest.mark.{mark}" for mark in (f'inferperf(model="tiny-llama", {keywords})', *marks)
        )
        source = f"import pytest\n\n{decorators}\ndef test_it(inferperf):\n    {body}\n"
        (self.path / "test_it.py").write_text(source)

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process."""
        return self.pytester.runpytest_inprocess(*arguments)

    def collects(self, *ids: str, expression: str = "inferperf") -> None:
        """Check the ids of the cases that an expression of `-m` selects."""
        result = self.run("--collect-only", "-q", "-m", expression)
        found = [line.partition("::")[2] for line in result.outlines if "::" in line]
        assert found == [f"test_it[{item}]" for item in ids]
