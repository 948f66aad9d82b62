"""The page as HTML: a template that escapes every text, a style, a script, and plotly.js, all in one file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib import resources, util
from pathlib import Path
from typing import Any

from pytest_inferperf.baselines.write import write_atomic
from pytest_inferperf.errors import MissingExtra, ResultFileError
from pytest_inferperf.model.verdicts import GateVerdict, Status
from pytest_inferperf.report.lines import compared_with, number
from pytest_inferperf.report.page.charts import Chart
from pytest_inferperf.report.page.content import Page

__all__ = ["check_extra", "page_html", "write_page"]


def check_extra() -> None:
    """Raise `MissingExtra` where what a page is made with is not installed: known before anything is measured."""
    for name in ("jinja2", "plotly"):
        if util.find_spec(name) is None:
            raise MissingExtra("An HTML report", "html", name)


def write_page(path: Path, page: Page, *, shown: str) -> None:
    """Write the file whole or not at all. Raises `MissingExtra`, and `ResultFileError` where it cannot be written."""
    write_atomic(path, page_html(page), shown=shown, error=ResultFileError)


def page_html(page: Page) -> str:
    """Return the whole file. Raises `MissingExtra` without Jinja2 and plotly."""
    check_extra()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    library = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    script = _file("page.js")
    # Only these two scripts run, whatever a text brings along; nothing is fetched from anywhere.
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}' '{_digest(library)}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "change": _change,
        "compared_with": compared_with,
        "breakable": _breakable,
    }
    every = [item for case in page.report.cases for item in case.verdicts]
    return environment.from_string(_file("page.html")).render(
        page=page,
        report=page.report,
        policy=policy,
        style=Markup(_file("page.css")),  # noqa: S704 - files of this package
        script=Markup(script),  # noqa: S704
        # A third of its size, and read only when a chart comes into sight.
        library=base64.b64encode(gzip.compress(library.encode(), 6, mtime=0)).decode("ascii"),
        figures=Markup(_data([chart.figure for chart in _charts(page)])),  # noqa: S704
        statuses=[item.value for item in Status if any(one.status is item for one in every)],
        gates=sorted({item.gate for item in every}),
        engines=sorted({case.engine for case in page.cases}),
    )


def _charts(page: Page) -> list[Chart]:
    """All charts, in the order in which the template numbers them."""
    found: list[Chart] = []
    for case in page.cases:
        found += case.charts
        for load in case.loads:
            found += load.charts
    return [*found, *page.trends]


def _change(item: GateVerdict) -> str:
    """Say how far a figure is from its baseline's, where the two are of a kind: a loss is none of a score."""
    if item.measured is None or not item.baseline or item.tolerance is None:
        return ""
    return f"{100 * (item.measured / item.baseline - 1):+.1f} %"


def _breakable(text: str) -> str:
    """Let a name be broken where its parts meet."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_/\]-]|::)", r"\1<wbr>", str(escape(text))))  # noqa: S704 - escaped before


def _file(name: str) -> str:
    return (resources.files("pytest_inferperf.report.page") / name).read_text("utf-8")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"


def _data(value: Any) -> str:
    """Write JSON that no HTML parser sees an end of the element in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
