"""The documentation is true: its examples run, its tables are those of the code, its links lead somewhere.

Each page is a script for one scratch project with the scripted engine of `tests/plugin/project`:

- `<!-- file: NAME -->` before a block writes the block to NAME,
- a `console` block is run command by command (`$ …`), and what it shows must be what the command prints; a line of
  `...` alone stands for any lines, `...` inside a line for any characters,
- `<!-- schema: NAME -->` before a `json` block checks it against a schema of the package.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from pytest_inferperf import cli, hookspecs, plugin
from pytest_inferperf.baselines.cases import read_cases
from pytest_inferperf.baselines.documents import check_schema
from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.baselines.store import read_accuracy, read_performance
from pytest_inferperf.baselines.validator import SchemaName
from pytest_inferperf.engines.tensorrt_llm.options import OPTIONS
from pytest_inferperf.errors import BaselineError
from pytest_inferperf.gates.looks import BLOCKS, QUESTIONS, SESSIONS
from pytest_inferperf.marks.gates import FRONTIER_KEYWORDS, GOODPUT_KEYWORDS, SPEEDUP_KEYWORDS
from pytest_inferperf.marks.keywords import KEYWORDS
from pytest_inferperf.measure.load.clock import ClockError, ClockReport
from pytest_inferperf.measure.load.skew import HostClock
from pytest_inferperf.measure.witness import Honesty, Witness
from pytest_inferperf.model.case import EngineSpec, GpuRequirement, Task, Workload
from pytest_inferperf.model.gates import AccuracyFloor, AccuracyLossCeiling, SpeedupFloor
from pytest_inferperf.model.metrics import METRICS
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS
from pytest_inferperf.options import MARKS
from tests.measure.test_validity import QUIET
from tests.plugin.conftest import Project

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "changelog.d" / "README.md", *sorted(DOCS.rglob("*.md"))]
COLUMNS = {"README.md": "100"}
"""The terminal width of a page's commands, where it is not 80."""

_BLOCK = re.compile(
    r"(?:^<!-- (?P<what>file|schema): (?P<name>[\w./-]+) -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    language: str
    body: str
    what: str
    """`file`, `schema` or nothing, as the comment before the block says."""

    name: str


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    for match in _BLOCK.finditer(page.read_text()):
        yield Block(language=match["language"], body=match["body"], what=match["what"] or "", name=match["name"] or "")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project, outside CI and xdist, on a terminal of a known width."""
    # A worker's environment makes pytest-benchmark warn when the run ends, and a warning is an error here.
    for name in (
        "CI",
        "BUILD_NUMBER",
        "GITHUB_ACTIONS",
        "GITHUB_STEP_SUMMARY",
        "GITLAB_CI",
        "PYTEST_XDIST_WORKER",
        "PYTEST_XDIST_WORKER_COUNT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    return Project(pytester)


# Examples.


def runs(page: Path) -> bool:
    return any(block.what == "file" or block.language == "console" for block in blocks(page))


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=title)
def test_examples_run(
    page: Path, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", COLUMNS.get(title(page), "80"))
    unseen: set[str] = set()
    for block in blocks(page):
        if block.what == "file":
            path = project.path / block.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body)
            unseen |= {block.name} if path.name.startswith("test_") else set()
        elif block.language == "console":
            for command, expected in commands(block.body):
                shown = run(command, project, capsys)
                problem = difference(expected, shown)
                assert not problem, f"{title(page)}: $ {command}\n{problem}\nIt printed:\n{shown}"
                unseen = set() if command.startswith("pytest") else unseen
    assert not unseen, f"{title(page)}: no command runs {', '.join(sorted(unseen))}"


def commands(body: str) -> Iterator[tuple[str, list[str]]]:
    """Split a console block into commands and the lines shown after each."""
    assert body.startswith("$ "), body
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        command, *expected = part.replace("\\\n", " ").rstrip("\n").split("\n")
        yield command, expected


def run(command: str, project: Project, capsys: pytest.CaptureFixture[str]) -> str:
    name, *arguments = shlex.split(command)
    if name == "pytest":
        capsys.readouterr()
        found = project.run(*arguments)
        capsys.readouterr()
        return "\n".join(line.rstrip() for line in (*found.outlines, *found.errlines)).strip("\n")
    if name == "inferperf":
        capsys.readouterr()
        cli.main(arguments)
        printed = capsys.readouterr()
        return (printed.out + printed.err).strip("\n")
    assert name in ("cat", "grep", "ls"), f"$ {name} is not a command that the documentation may use"
    done = subprocess.run([name, *arguments], cwd=project.path, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip("\n")


def difference(expected: Sequence[str], shown: str) -> str:
    """Say which expected lines are missing from what was shown; "" when all are there, in order.

    The width of columns is left out: it depends on figures that are not shown.
    """
    if not expected:
        return ""
    lines = [re.sub(" +", " ", line) for line in shown.split("\n")]
    position, anchored = 0, True
    for number, text in enumerate(expected):
        if text == "...":
            anchored = False
            continue
        parts = re.sub(" +", " ", text.rstrip()).split("...")
        pattern = re.compile(".*?".join(re.escape(part) for part in parts))
        reach = range(position, position + 1 if anchored else len(lines))
        found = next((at for at in reach if at < len(lines) and pattern.fullmatch(lines[at])), None)
        if found is None:
            return f"line {number + 1} of the example is not what follows:\n  {text}"
        position, anchored = found + 1, True
    left = lines[position:] if anchored else []
    return f"the example leaves out:\n  {left[0]}" if left else ""


@pytest.mark.parametrize(
    ("expected", "shown", "same"),
    [
        (["a", "...", "d"], "a\nb\nc\nd", True),
        (["a", "..."], "a\nb", True),
        (["a"], "a\nb", False),
        (["...", "b"], "a\nb\nb", False),
        (["1 failed in ...s"], "1 failed in 0.12s", True),
        (["a", "c"], "a\nb\nc", False),
        (["..."], "", True),
    ],
)
def test_how_examples_are_compared(expected: list[str], shown: str, same: bool) -> None:
    assert (difference(expected, shown) == "") is same


def test_the_demo_is_the_one_that_the_tutorial_describes() -> None:
    demo, tutorial = (ROOT / "suites/embedded/demo.py").read_text(), (DOCS / "tutorial.md").read_text()
    (texts,) = re.findall(r'^WRONG_TEXTS = "(.+)"$', demo, re.M)
    regressions = [item.replace("{WRONG_TEXTS}", texts) for item in re.findall(r'"(--inferperf-set=[^"]+)"', demo)]
    assert regressions
    for option in regressions:
        assert option in tutorial


# Files.


READERS: Mapping[SchemaName, Callable[[Path], object]] = {
    "performance": lambda path: read_performance(path, shown=path.name),
    "accuracy": lambda path: read_accuracy(path, shown=path.name),
    "result": read_result_file,
    "cases": read_cases,
}


@pytest.mark.parametrize("schema", get_args(SchemaName))
def test_file_examples_fit_their_schemas(schema: SchemaName, tmp_path: Path) -> None:
    found = [block for page in PAGES for block in blocks(page) if block.what == "schema" and block.name == schema]
    assert found, f"no page shows a {schema} file"
    for block in found:
        check_schema(json.loads(block.body), schema, "the example", error=BaselineError)
        path = tmp_path / "example.json"
        path.write_text(block.body)
        READERS[schema](path)


# Tables.


def table(page: str, first: str) -> list[dict[str, str]]:
    """Return the rows of the table of a page whose first column is headed `first`."""
    lines = (DOCS / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(rf"\| {re.escape(first)} +\|", line))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`").replace("\\|", "|") for cell in line.strip("|").split(" | ")])
    head, _, *body = rows
    assert all(len(row) == len(head) for row in body), f"{page}: {first}: a row has too few or too many cells"
    return [dict(zip(head, row, strict=True)) for row in body]


def default_of(item: Field[Any]) -> str:
    return "required" if item.default is MISSING else repr(item.default).replace("'", '"')


def test_keywords_of_the_inferperf_mark() -> None:
    rows = {row["keyword"]: row for row in table("reference/marks.md", "keyword")}
    assert list(rows) == list(KEYWORDS)
    owners: dict[str, Any] = {"engine": EngineSpec, "workload": Workload, "task": Task}
    for name, keyword in KEYWORDS.items():
        row = rows[name]
        assert row["about"] == keyword.target, name
        minimum = f", at least {keyword.minimum}" if keyword.kind is int else ""
        also = f" or {keyword.also.__name__}" if keyword.also is not None else ""
        assert row["type"] == keyword.kind.__name__ + minimum + also, name
        item = {item.name: item for item in fields(owners[keyword.target])}["name" if name == "task" else name]
        if name in ("served_model_name", "engine_options", "num_requests", "backend", "isl", "osl"):
            continue  # worked out from other keywords and settings; described in words
        assert row["default"] == default_of(item), name


@pytest.mark.parametrize(
    ("first", "values"),
    [
        ("accuracy_loss_ceiling", AccuracyLossCeiling),
        ("accuracy_floor", AccuracyFloor),
        ("requires_gpu", GpuRequirement),
    ],
)
def test_keywords_of_the_other_marks(first: str, values: Any) -> None:
    rows = {row[f"{first} keyword"]: row["default"] for row in table("reference/marks.md", f"{first} keyword")}
    assert rows == {item.name: default_of(item) for item in fields(values)}


def test_keywords_of_goodput_floor() -> None:
    rows = table("reference/marks.md", "goodput_floor keyword")
    assert tuple(row["goodput_floor keyword"] for row in rows) == GOODPUT_KEYWORDS


def test_keywords_of_frontier_floor() -> None:
    rows = table("reference/marks.md", "frontier_floor keyword")
    assert tuple(row["frontier_floor keyword"] for row in rows) == FRONTIER_KEYWORDS


def test_keywords_of_speedup_floor() -> None:
    rows = table("reference/marks.md", "speedup_floor keyword")
    assert tuple(row["speedup_floor keyword"] for row in rows) == SPEEDUP_KEYWORDS
    assert rows[1]["default"] == default_of(next(item for item in fields(SpeedupFloor) if item.name == "ratio"))


def test_signatures_of_marks(project: Project) -> None:
    shown = re.findall(r"^@pytest\.mark\.(\w+\(.*?\)): ", project.run("--markers").stdout.str(), re.M)
    ours = [item for item in shown if any(item.startswith(line.partition("(")[0] + "(") for line in MARKS)]
    text = re.sub(r"\s+", " ", (DOCS / "reference/marks.md").read_text())
    assert len(ours) == len(MARKS)
    for signature in ours:
        assert f"@pytest.mark.{signature}" in text


class Options:
    """Stands in for pytest's parser and keeps what a plugin registers."""

    def __init__(self) -> None:
        self.options: dict[str, dict[str, Any]] = {}
        self.ini: dict[str, dict[str, Any]] = {}
        plugin.pytest_addoption(self)  # type: ignore[arg-type]

    def getgroup(self, *_: str) -> Options:
        return self

    def addoption(self, name: str, **attributes: Any) -> None:
        choices = attributes.get("choices")
        value = f"{{{','.join(choices)}}}" if choices else attributes.get("metavar")
        self.options[f"{name}={value}" if value else name] = attributes

    def addini(self, name: str, help_text: str, *, type: str = "string", default: object = "") -> None:
        self.ini[name] = {"help": help_text, "type": type, "default": default}


def test_options() -> None:
    rows = {row["option"]: row["meaning"] for row in table("reference/options.md", "option")}
    assert rows == {name: item["help"].replace("\n", " ") for name, item in Options().options.items()}


def test_ini_settings() -> None:
    rows = {row["ini setting"]: row for row in table("reference/options.md", "ini setting")}
    registered = Options().ini
    assert list(rows) == list(registered)
    for name, item in registered.items():
        expected = {"type": item["type"], "default": ini_text(item["default"]), "meaning": item["help"]}
        assert {key: rows[name][key] for key in expected} == expected


def ini_text(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value or "empty")
    )


def test_every_test_that_shows_a_fault_exists() -> None:
    rows = table("faults.md", "fault")
    assert len(rows) > 10
    for row in rows:
        shown = re.findall(r"`?([\w/]+\.py)::(\w+)`?", row["shown by"])
        assert shown, row["fault"]
        for path, name in shown:
            tree = ast.parse((ROOT / path).read_text())
            found = {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}
            assert name in found, f"{row['fault']}: {path} has no {name}"


def test_telemetry() -> None:
    rows = [row["figure"] for row in table("reference/files.md", "figure")]
    assert sorted(rows) == sorted({"cpu.others.NAME", *(name.replace("gpu0", "gpuN") for name in QUIET)})


def test_client_figures() -> None:
    error = ClockError(mean_ms=1.0, p99_ms=1.0, max_ms=1.0)
    witness = Witness(Honesty(), seed=0)
    host = HostClock(host="node a", processes=1, offset_s=0.0, bound_ms=0.1, drift_ms=0.0)
    witness.saw_clocks(
        [ClockReport(lag=error, wait=error, wait_source="kernel", lateness=error, cpu_share=0.1)], [host]
    )
    assert [row["client figure"] for row in table("reference/files.md", "client figure")] == list(
        witness.client_figures
    )


def test_help_block_of_the_readme(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    printed = project.run("--help").stdout.str()
    start = printed.index("accuracy and performance of LLM inference:")
    text = "\n".join(line.rstrip() for line in printed[start:].split("\n\n")[0].splitlines())
    (shown,) = [block.body for block in blocks(ROOT / "README.md") if block.language == "text"]
    assert shown.strip() == text


def test_metrics() -> None:
    rows = table("reference/metrics.md", "metric")
    assert rows == [
        {
            "metric": row.name,
            "unit": row.unit,
            "better": "higher" if row.higher_is_better else "lower",
            "per": row.sample,
            "formula": row.formula,
            "source": row.source,
        }
        for row in METRICS.values()
    ]


def test_looks() -> None:
    assert table("verdicts.md", "unit") == [
        {
            "unit": plan.unit,
            "looks": ", ".join(map(str, plan.looks)),
            "levels": ", ".join(f"{level:.4f}" for level in plan.levels),
        }
        for plan in (SESSIONS, BLOCKS, QUESTIONS)
    ]


def test_quantizations() -> None:
    rows = table("reference/quantization.md", "quant")
    assert rows == [
        {
            "quant": row.name,
            "ModelOpt configuration": row.modelopt_config or "none",
            "quant_algo": row.quant_algo or "none",
            "first SM": str(row.min_sm),
        }
        for row in QUANTIZATIONS.values()
    ]


def test_options_of_tensorrt_llm() -> None:
    assert table("reference/tensorrt_llm.md", "option") == [
        {
            "option": name,
            "type": row.kind.__name__,
            "default": "—" if row.default is None else str(row.default),
            "argument": row.path,
            "meaning": row.meaning + (f" ({', '.join(row.values)})" if row.values else ""),
        }
        for name, row in OPTIONS.items()
    ]


def test_kv_cache_types() -> None:
    rows = table("reference/quantization.md", "kv_cache_dtype")
    assert rows == [
        {
            "kv_cache_dtype": row.name,
            "ModelOpt configuration": row.modelopt_config or "none",
            "kv_cache_quant_algo": row.kv_cache_quant_algo or "none",
            "first SM": str(row.min_sm or "any"),
        }
        for row in KV_CACHE_DTYPES.values()
    ]


def test_hooks_are_described() -> None:
    text = (DOCS / "reference/hooks.md").read_text()
    for name in vars(hookspecs):
        assert not name.startswith("pytest_inferperf_") or f"`{name}(" in text


# Words and links.


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{title(page)} links to {target}"
        if anchor:
            heads = [line.lstrip("# ") for line in aim.read_text().splitlines() if line.startswith("#")]
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, f"{title(page)} links to {target}; headings: {', '.join(slugs)}"


def test_every_page_is_linked_from_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"index.md"}
    assert pages == {target for target in re.findall(r"\]\(([^)#]+\.md)\)", index) if not target.startswith("..")}


_FORBIDDEN = re.compile(
    r"pypi\.|pythonhosted|artifactory|huggingface\.co|--index-url|find-links|(?<![\w.])/(?:work|root|home|tmp)/", re.I
)


@pytest.mark.parametrize("path", [*PAGES, DOCS / "images" / "failure.svg", ROOT / "CHANGELOG.md"], ids=title)
def test_no_registries_and_no_places_of_one_machine(path: Path) -> None:
    assert not _FORBIDDEN.findall(path.read_text())


# The picture.


def test_picture_shows_what_pytest_prints(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python docs/images/make_pictures.py` draws it again."""
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "images" / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    monkeypatch.setenv("COLUMNS", str(pictures.WIDTH))
    for quant in pictures.RECORDED:
        (project.path / "test_serving.py").write_text(pictures.TEST.replace("NVFP4", quant))
        project.run("-q", "--benchmark-disable", "--inferperf-update=new")
    (project.path / "test_serving.py").write_text(pictures.TEST)
    (project.path / "engine.json").write_text(pictures.REGRESSION)
    printed = "\n".join(project.run("-q", "--color=yes", "--benchmark-disable").outlines)
    drawn = "".join(
        "".join(item.itertext())
        for item in ET.parse(pictures.PICTURE).getroot().iter("{http://www.w3.org/2000/svg}text")
        if "title" not in item.get("class", "")
    )
    expected = "$ pytest -q" + pictures._DURATION.sub("", printed)
    assert re.sub(r"\s", "", drawn) == re.sub(r"\s|\x1b\[[\d;]*m", "", expected)


def test_picture_loads_nothing() -> None:
    text = (DOCS / "images" / "failure.svg").read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
