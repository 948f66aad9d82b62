"""Options, ini values and environment, resolved once into one frozen object."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import pytest

from pytest_inferperf.errors import ResultFileError, SettingsError
from pytest_inferperf.model.case import Scalar
from pytest_inferperf.model.injection import Injection, parse_injections
from pytest_inferperf.model.limits import LIMITS, Limit
from pytest_inferperf.storage import check_address, is_address

if TYPE_CHECKING:
    from pytest_inferperf.baselines.against import RunReference
    from pytest_inferperf.baselines.replay import Replay
    from pytest_inferperf.marks.against import EngineReference
    from pytest_inferperf.waivers import Waiver

__all__ = ["ON_INCONCLUSIVE", "UPDATE_MODES", "Settings", "read_settings"]

UPDATE_MODES = ("new", "tighten", "all")
ON_INCONCLUSIVE = ("fail", "warn")
ORDERS = ("longest", "suite")
_FALSE = ("", "0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line, the ini file and the environment say. Command line beats ini."""

    root: Path
    """pytest's rootdir."""

    baselines: Path
    """Folder of the baseline files."""

    cache_dir: Path | None
    """Folder of built checkpoints; None for the user's cache folder."""

    shared_cache: str
    """Address where machines share their checkpoints; "" for none."""

    backend: str
    update: Literal["new", "tighten", "all"] | None
    reason: str
    accept_regression: bool
    json_path: Path | None
    results: str
    """Folder or address that keeps the result file of every run; "" for none."""

    require_gpu: bool
    overrides: tuple[tuple[str, Scalar], ...]
    against: EngineReference | RunReference | None
    """What stands in for the baselines; None for the baseline files."""
    replay: Replay | None
    """Results of an earlier run that stand in for engines; None where engines are built."""

    injections: tuple[Injection, ...]
    """What is made worse on purpose, to prove that the gates see it."""

    task_paths: tuple[Path, ...]
    """Folders with task YAML files that names may refer to."""

    tolerance: float
    """Default relative performance tolerance."""

    alpha: float
    """Total one-sided error of each gate, over all of its looks."""

    limits: Mapping[str, float]
    """How much a machine may disturb a measurement: a value for each setting of `model.limits`."""

    audit: bool
    """Whether prompts are repeated after the measurement, to find answers that come from a cache."""

    on_inconclusive: Literal["fail", "warn"]
    fail_on_improvement: bool
    """Whether a gain beyond the tolerance fails: the baseline is stale."""

    waivers: tuple[Waiver, ...]
    """Failures that the project lives with for a time."""

    load_timeout_s: float
    """Longest time an engine may take to load (checkpoint builds included)."""

    call_timeout_s: float
    """Longest time one call of an engine may take."""

    gpu_timeout_s: float
    """Longest time an engine may wait for GPUs that others hold."""

    gpu_hour_price: float
    """What one GPU costs for one hour, in any currency; 0 where nobody said."""

    plan: bool
    """Whether the run is planned instead of run."""

    past: Path | None
    """A result file, or a folder of them, that a plan takes expected times from; None for none."""

    ray: str
    """The Ray cluster that engines run on: `auto`, `local`, `ray://HOST:PORT`; "" for this machine without Ray."""

    order: Literal["longest", "suite"]
    """Which engine is dealt first on Ray with -n: the one that takes longest, or as xdist does."""

    power: float
    """The probability with which a plan wants losses to be found."""

    is_worker: bool
    """Whether this is an xdist worker."""

    @property
    def against_run(self) -> RunReference | None:
        """The run that stands in for the baseline files; None where they or an engine are compared with."""
        from pytest_inferperf.baselines.against import RunReference

        return self.against if isinstance(self.against, RunReference) else None


def read_settings(config: pytest.Config) -> Settings:
    """Read and check every setting. Raises `SettingsError` for a wrong value or combination."""
    from pytest_inferperf.waivers import read_waivers

    option = config.getoption

    def path(value: str) -> Path:
        return _absolute(config.invocation_params.dir, value)

    def ini_path(name: str) -> Path:
        return _absolute(config.rootpath, str(config.getini(name)))

    baselines = option("inferperf_baselines")
    cache = _place(config, "inferperf_cache_dir")
    json_path = option("inferperf_json")
    settings = Settings(
        root=config.rootpath,
        baselines=path(baselines) if baselines else ini_path("inferperf_baselines"),
        cache_dir=Path(cache) if cache and not is_address(cache) else None,
        shared_cache=cache if is_address(cache) else "",
        backend=str(option("inferperf_backend") or config.getini("inferperf_backend")),
        update=option("inferperf_update"),
        reason=(option("inferperf_reason") or "").strip(),
        accept_regression=bool(option("inferperf_accept_regression")),
        json_path=path(json_path) if json_path else None,
        results=_place(config, "inferperf_results"),
        require_gpu=bool(option("inferperf_require_gpu") or config.getini("inferperf_require_gpu")),
        overrides=tuple(_override(item) for item in option("inferperf_set") or ()),
        against=_against(config),
        replay=_replay(config),
        injections=parse_injections(option("inferperf_inject") or ()),
        task_paths=tuple(Path(item) for item in config.getini("inferperf_task_paths")),
        tolerance=_between(config, "inferperf_tolerance", 0, 1),
        alpha=_between(config, "inferperf_alpha", 1e-12, 0.5),
        limits={limit.ini: _up_to(config, limit) for limit in LIMITS},
        audit=bool(option("inferperf_audit")),
        on_inconclusive=_on_inconclusive(config),
        fail_on_improvement=bool(config.getini("inferperf_fail_on_improvement")),
        waivers=read_waivers(config.rootpath),
        load_timeout_s=_between(config, "inferperf_load_timeout", 0, None),
        call_timeout_s=_between(config, "inferperf_call_timeout", 0, None),
        gpu_timeout_s=_between(config, "inferperf_gpu_timeout", 0, None),
        gpu_hour_price=_price(config),
        plan=bool(option("inferperf_plan")),
        past=_past(config, path(json_path) if json_path else None),
        power=_power(config),
        ray=_ray(config),
        order=_order(config),
        is_worker=hasattr(config, "workerinput"),
    )
    _check_replay(settings)
    _check_update(settings, config)
    return settings


def _place(config: pytest.Config, name: str) -> str:
    """Return a folder, absolute, or an address, as the option says, else the ini; "" for neither."""
    given, ini = config.getoption(name), str(config.getini(name))
    value = ini if given is None else str(given)
    if is_address(value):
        option = f"--{name.replace('_', '-')}"
        return check_address(value, what=option if given is not None else f"{name} in the ini file")
    return str(_absolute(config.rootpath if given is None else config.invocation_params.dir, value)) if value else ""


def _absolute(folder: Path, value: str) -> Path:
    if is_address(value):
        raise SettingsError(
            f"{value}: a path is asked for, not an address. Addresses are taken by --inferperf-results and "
            "--inferperf-cache-dir."
        )
    try:
        return Path(os.path.abspath(folder / Path(value).expanduser()))
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"{value[:80]!r} cannot be a path: {error}") from None


def _override(text: str) -> tuple[str, Scalar]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError(f"--inferperf-set {text!r}: write KEYWORD=VALUE, such as rounds=3 or quant=FP8.")
    try:
        parsed = json.loads(value)
    except ValueError:
        return name, value
    if isinstance(parsed, list | dict):
        raise SettingsError(f"--inferperf-set {text!r}: takes one value, not a list or an object.")
    return name, cast("Scalar", parsed)


def _against(config: pytest.Config) -> EngineReference | RunReference | None:
    text = config.getoption("inferperf_against")
    if text is None:
        return None
    from pytest_inferperf.marks.against import parse_against

    return parse_against(text, config.invocation_params.dir)


def _replay(config: pytest.Config) -> Replay | None:
    text = config.getoption("inferperf_replay")
    if text is None:
        return None
    from pytest_inferperf.baselines.replay import Replay
    from pytest_inferperf.baselines.result_file import read_result_file

    try:
        return Replay(label=text, file=read_result_file(_absolute(config.invocation_params.dir, text)))
    except ResultFileError as error:
        message = str(error)
    raise SettingsError(f"--inferperf-replay: {message}")


def _check_replay(settings: Settings) -> None:
    """Refuse what a replay, which measures nothing, cannot do."""
    if settings.replay is None:
        return
    from pytest_inferperf.model.case import is_experiment

    if settings.update is not None:
        raise SettingsError(
            "--inferperf-update does not go with --inferperf-replay: nothing is measured. Record the file itself: "
            f"inferperf baseline update {settings.replay.label}"
        )
    given_now = {name: str(value) for name, value in settings.overrides}
    for key, value in settings.replay.file.environment.items():
        name = key.removeprefix("--inferperf-set ")
        if name != key and is_experiment(name) and given_now.get(name) != value:
            raise SettingsError(
                f"--inferperf-replay: {settings.replay.label} was measured with --inferperf-set {name}={value}; it says "
                "nothing about the engine of the marks. Repeat the run without the option, or give it here too."
            )
    others = (
        ("--inferperf-plan", settings.plan),
        ("--inferperf-inject", bool(settings.injections)),
        ("--inferperf-against with an engine", settings.against is not None and settings.against_run is None),
    )
    for name, given in others:
        if given:
            raise SettingsError(f"{name} does not go with --inferperf-replay, which builds no engine. Leave one out.")


def _number(config: pytest.Config, name: str) -> float:
    try:
        return float(config.getini(name))
    except (ValueError, pytest.UsageError) as error:
        # pytest 8.4 raises the one, pytest 9 the other.
        message = f"{name} in the ini file is not a number: {error}."
    raise SettingsError(message)


def _between(config: pytest.Config, name: str, low: float, high: float | None) -> float:
    value = _number(config, name)
    if not (low < value and (high is None or value < high)):
        span = f"above {low}" if high is None else f"between {low} and {high}"
        raise SettingsError(f"{name} = {value:g} in the ini file must be {span}.")
    return value


def _up_to(config: pytest.Config, limit: Limit) -> float:
    """Read a limit whose ends are values too: they switch the check off, or allow nothing."""
    value = _number(config, limit.ini)
    if not (value >= 0 and (limit.high is None or value <= limit.high)):
        span = "0 or more" if limit.high is None else f"from 0 to {limit.high:g}"
        raise SettingsError(f"{limit.ini} = {value:g} in the ini file must be {span}.")
    return value


def _past(config: pytest.Config, json_path: Path | None) -> Path | None:
    """Return where past results are: the option, else the ini, else what an earlier run wrote to --inferperf-json."""
    given, ini = config.getoption("inferperf_past"), str(config.getini("inferperf_past"))
    if not given and not ini:
        return json_path if json_path is not None and json_path.is_file() else None
    folder = config.invocation_params.dir if given else config.rootpath
    found = _absolute(folder, given or ini)
    if not found.exists():
        where = f"--inferperf-past={given}" if given else f"inferperf_past = {ini} in the ini file"
        raise SettingsError(
            f"{where}: no such file or folder: {found}. Name a file that --inferperf-json wrote, or a folder of them."
        )
    return found


def _price(config: pytest.Config) -> float:
    value = _number(config, "inferperf_gpu_hour_price")
    if not 0 <= value < math.inf:
        raise SettingsError(f"inferperf_gpu_hour_price = {value:g} in the ini file must be 0 (no price) or more.")
    return value


def _power(config: pytest.Config) -> float:
    given = config.getoption("inferperf_power")
    if given is None:
        return _between(config, "inferperf_power", 0, 1)
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise SettingsError(f"--inferperf-power={given} must be a number between 0 and 1, such as 0.9 for 90 %.")
    return value


def _ray(config: pytest.Config) -> str:
    given = config.getoption("inferperf_ray")
    if given is None:
        return ""
    from pytest_inferperf.cluster.connection import LOCAL, check_address

    if given == LOCAL and (config.getoption("numprocesses", None) or hasattr(config, "workerinput")):
        raise SettingsError(
            "--inferperf-ray=local does not go with -n: each worker would start a cluster of its own on the same "
            "processors. Start one (ray start --head) and use --inferperf-ray=auto, or leave -n out."
        )
    return check_address(given)


def _on_inconclusive(config: pytest.Config) -> Literal["fail", "warn"]:
    value = str(config.getini("inferperf_on_inconclusive"))
    if value not in ON_INCONCLUSIVE:
        raise SettingsError(
            f"inferperf_on_inconclusive = {value} in the ini file is not one of: {', '.join(ON_INCONCLUSIVE)}."
        )
    return cast("Literal['fail', 'warn']", value)


def _order(config: pytest.Config) -> Literal["longest", "suite"]:
    value = str(config.getini("inferperf_order"))
    if value not in ORDERS:
        raise SettingsError(f"inferperf_order = {value} in the ini file is not one of: {', '.join(ORDERS)}.")
    return cast("Literal['longest', 'suite']", value)


def _in_ci() -> bool:
    """Whether this is CI: CI is set to anything but a no, or Jenkins or Azure Pipelines says so in its own way."""
    if os.environ.get("CI", "").lower() not in _FALSE:
        return True
    return any(os.environ.get(name) for name in ("BUILD_NUMBER", "TF_BUILD"))


def _check_update(settings: Settings, config: pytest.Config) -> None:
    """Refuse an update that nobody asked for in so many words."""
    if settings.update is not None and settings.plan:
        raise SettingsError(
            "--inferperf-update does not go with --inferperf-plan: a plan measures nothing that could be recorded. "
            "Leave one of the two options out."
        )
    if settings.update is None:
        if settings.accept_regression or settings.reason:
            given = "--inferperf-accept-regression" if settings.accept_regression else "--inferperf-reason"
            raise SettingsError(f"{given} goes with --inferperf-update; without it nothing is recorded.")
        return
    if settings.against is not None:
        raise SettingsError(
            "--inferperf-update does not go with --inferperf-against: what is recorded is judged by the baselines. Leave "
            "one of the two options out."
        )
    if settings.is_worker:
        return
    if settings.injections:
        raise SettingsError(
            f"--inferperf-update does not go with --inferperf-inject={settings.injections[0]}: a regression that was put "
            "in on purpose is no baseline. Leave one of the two out."
        )
    if config.getoption("numprocesses", None) or config.getoption("dist", "no") != "no":
        raise SettingsError(
            "--inferperf-update does not go with xdist: one serial process records baselines. Run without -n, or "
            "write --inferperf-json=RESULTS.json and then: inferperf baseline update RESULTS.json"
        )
    if _in_ci() and not config.getoption("inferperf_update_in_ci"):
        raise SettingsError(
            "--inferperf-update in CI records what CI measured, unreviewed. Update from an artifact "
            "instead (inferperf baseline update RESULTS.json), or say so: --inferperf-update-in-ci"
        )
    from pytest_inferperf.model.case import is_experiment

    for name, _ in settings.overrides:
        if is_experiment(name):
            raise SettingsError(
                f"--inferperf-update does not go with --inferperf-set {name}=…: an override is an experiment, not a "
                "baseline. Write the value into the mark, or leave one of the two options out."
            )
    if settings.update == "all" and not settings.reason:
        raise SettingsError('--inferperf-update=all may loosen a baseline: say why with --inferperf-reason="…"')
