"""`--inferperf-against`: what a run is compared with instead of the baseline files.

against   = PATH of a result file | setting ("," setting)*
setting   = KEYWORD=VALUE | engine_options.NAME=VALUE | python=PATH | reload=true
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pytest_inferperf.baselines.against import RunReference
from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.errors import MarkError, ResultFileError, SettingsError, choices
from pytest_inferperf.marks.engines import engine_like
from pytest_inferperf.marks.keywords import KEYWORDS, check_value
from pytest_inferperf.marks.origin import Origin
from pytest_inferperf.model.case import EngineSpec, ReferenceEngine, Scalar
from pytest_inferperf.model.gates import AccuracyLossCeiling, Gate, PerformanceGate, SpeedupFloor

__all__ = ["EngineReference", "gates_against", "parse_against"]

_OPTION = "--inferperf-against"
_DOTTED = "engine_options."
_KEYWORDS = (*(name for name, row in KEYWORDS.items() if row.target == "engine" and row.kind is not dict), "python")
_FORMS = (
    "Give the path of a result file (a run writes one with --inferperf-json=PATH), or how the reference engine differs: "
    "quant=BF16,engine_options.NAME=VALUE"
)


@dataclass(frozen=True, kw_only=True)
class EngineReference:
    """Engine keywords that turn the engine of each case into its reference."""

    label: str
    """The text as it was given."""

    keywords: Mapping[str, Any]
    """As a mark has them: `engine_options` is a dict."""

    python: str = ""
    """Another interpreter, absolute; "" for the one that runs pytest."""

    reload: bool = False

    def engine(self, spec: EngineSpec, origin: Origin) -> ReferenceEngine:
        """Return the reference of a case's engine. Raises `MarkError` where the keywords do not fit it."""
        try:
            found = engine_like(spec, self.keywords, origin)
        except MarkError as error:
            raise MarkError(f"{_OPTION} {self.label}: {str(error).removeprefix('inferperf: ')}") from None
        return ReferenceEngine(label=self.label, spec=found, python=self.python, reload=self.reload)


def parse_against(text: str, folder: Path) -> EngineReference | RunReference:
    """Read the option; paths are relative to `folder`.

    Raises `SettingsError` for a file that does not exist or is no result file, and for a wrong keyword or value.
    """
    path = folder / Path(text)
    if path.is_file():
        try:
            return RunReference(label=text, file=read_result_file(path))
        except ResultFileError as error:
            message = str(error)
        raise SettingsError(f"{_OPTION}: {message}")
    if "=" not in text:
        raise SettingsError(f"{_OPTION} {text!r}: no such file. {_FORMS}.\nKeywords: {_valid()}.")
    keywords: dict[str, Any] = {}
    seen: set[str] = set()
    python, reload = "", False
    for setting in text.split(","):
        name, equals, value = setting.partition("=")
        if not equals or not value:
            raise SettingsError(f"{_OPTION} {text!r}: {setting!r} is not KEYWORD=VALUE. {_FORMS}.")
        if name in seen:
            raise SettingsError(f"{_OPTION} {text!r}: says {name} twice; keep one.")
        seen.add(name)
        if name == "python":
            python = _interpreter(value, folder)
        elif name == "reload":
            if value not in ("true", "false"):
                raise SettingsError(f"{_OPTION}: reload={value}: write reload=true or reload=false.")
            reload = value == "true"
        else:
            _take(keywords, name, value)
    if not keywords and not python:
        raise SettingsError(f"{_OPTION} {text!r}: names no engine keyword, so both engines would be one. {_FORMS}.")
    return EngineReference(label=text, keywords=keywords, python=python, reload=reload)


def _valid() -> str:
    return ", ".join(sorted((*_KEYWORDS, "reload", f"{_DOTTED}NAME")))


def _take(keywords: dict[str, Any], name: str, text: str) -> None:
    value = _scalar(text)
    try:
        if name.startswith(_DOTTED) and name != _DOTTED:
            option = {name.removeprefix(_DOTTED): value}
            check_value("engine_options", option)
            keywords["engine_options"] = {**keywords.get("engine_options", {}), **option}
            return
        if name not in _KEYWORDS:
            guess = choices(name, (*_KEYWORDS, "reload", f"{_DOTTED}NAME"), what="Keywords")
            raise SettingsError(f"{_OPTION}: unknown keyword {name!r}.\n{guess} Or the path of a result file.")
        check_value(name, value)
    except MarkError as error:
        message = str(error).removeprefix("inferperf: ").replace(", or a list of them", "")
    else:
        keywords[name] = value
        return
    raise SettingsError(f"{_OPTION}: {message}")


def _scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, list | dict) else cast("Scalar", value)


def _interpreter(value: str, folder: Path) -> str:
    # Not resolved: the python of a virtual environment is a link, and knows its packages by its own place.
    path = os.path.abspath(folder / Path(value).expanduser()) if os.sep in value else shutil.which(value) or value
    if not (Path(path).is_file() and os.access(path, os.X_OK)):
        raise SettingsError(
            f"{_OPTION}: python={value}: no such program. Give the interpreter of the other environment."
        )
    return path


def gates_against(
    gates: tuple[Gate, ...], against: EngineReference | RunReference, reference: ReferenceEngine | None
) -> tuple[Gate, ...]:
    """Turn gates that a baseline would judge into gates against the reference; absolute limits and floors stay.

    `reference` is the engine of the case that `against` names; None where it names a result file.
    """
    found: list[Gate] = []
    for gate in gates:
        if isinstance(gate, AccuracyLossCeiling):
            found.append(replace(gate, reference=against.label))
        elif isinstance(gate, PerformanceGate) and gate.limit is None and reference is not None:
            found.append(SpeedupFloor(metric=gate.metric, reference=reference, tolerance=gate.tolerance))
        else:
            found.append(gate)
    return tuple(found)
