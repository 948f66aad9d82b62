"""Validity before judgement: is the engine the one that was asked for, and was it left alone while it was measured?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.quant import KV_CACHE_DTYPES, QUANTIZATIONS
from pytest_inferperf.model.results import UNVERIFIED, EngineInfo

__all__ = ["CHECKS", "Check", "check_engine", "check_telemetry"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row: which figures of the telemetry, against which limit, and what a user reads when they are beyond it."""

    figures: tuple[str, ...]
    """Added up. `gpu.` stands for each GPU in turn."""

    ini: str = ""
    """The setting with the limit; "" where the limit is 0 and nothing moves it."""

    is_floor: bool = False
    says: str
    """What happened: {device}, {value} and {limit} are filled in, as counts or as percent."""

    as_percent: bool = True
    cure: str


CHECKS = (
    Check(
        figures=("cpu.others", "cpu.steal"),
        ini="inferperf_max_interference",
        says="others took {value} of the CPU time, where {limit} is the limit",
        cure="stop what runs beside the test",
    ),
    Check(
        figures=("cpu.throttled",),
        ini="inferperf_max_throttled",
        says="the CPU quota throttled {value} of its periods, where {limit} is the limit",
        cure="give the engine no more threads than the quota has CPUs, or the container more CPUs",
    ),
    Check(
        figures=("cpu.clock",),
        ini="inferperf_min_clock",
        is_floor=True,
        says="the CPUs ran at {value} of their highest clock, where {limit} is the least",
        cure="look at the power supply, the cooling and the frequency governor",
    ),
    Check(
        figures=("gpu.throttled",),
        ini="inferperf_max_throttled",
        says="{device} was slowed down by heat or hardware in {value} of the time, where {limit} is the limit",
        cure="look at the cooling and the power supply (nvidia-smi -q -d PERFORMANCE)",
    ),
    Check(
        figures=("gpu.sm_clock",),
        ini="inferperf_min_clock",
        is_floor=True,
        says="{device} ran at {value} of its highest SM clock, where {limit} is the least",
        cure="look for locked clocks and power limits (nvidia-smi -q -d CLOCK,PERFORMANCE)",
    ),
    Check(
        figures=("gpu.power_limit",),
        ini="inferperf_min_power_limit",
        is_floor=True,
        says="the power limit of {device} is {value} of its default, where {limit} is the least",
        cure="set the default again (nvidia-smi -q -d POWER shows it)",
    ),
    Check(
        figures=("gpu.other_processes",),
        ini="inferperf_max_gpu_processes",
        says="other processes that computed on {device}: {value}, where {limit} is the limit",
        as_percent=False,
        cure="stop them (nvidia-smi names them)",
    ),
    Check(
        figures=("gpu.ecc_errors",),
        says="memory errors of {device} that ECC could not correct: {value}",
        as_percent=False,
        cure="take the GPU out of service (nvidia-smi -q -d ECC)",
    ),
)
"""The checks of telemetry. A figure that is absent is not checked."""


def check_telemetry(telemetry: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Compare what happened during the measured rounds of one session with the limits.

    `limits` holds a value for each setting of `model.limits`. Returns the reason the run is INVALID, with everything
    that is beyond its limit, or "". The same figures and limits give the same answer, today or from a stored result.
    """
    devices: dict[str, dict[str, float]] = {}
    for name, value in telemetry.items():
        device, _, figure = name.partition(".")
        devices.setdefault(device, {})[figure] = value
    found = []
    for device, figures in sorted(devices.items()):
        for check in CHECKS:
            kind = device.rstrip("0123456789")
            names = [name.partition(".")[2] for name in check.figures if name.partition(".")[0] == kind]
            known = [figures[name] for name in names if name in figures]
            value, limit = sum(known), limits[check.ini] if check.ini else 0.0
            if not known or not (value < limit if check.is_floor else value > limit):
                continue
            said = check.says.format(device=device, value=_shown(value, check), limit=_shown(limit, check))
            cure = f"{check.cure}, or set {check.ini} in the ini file" if check.ini else check.cure
            found.append(f"{said}{_most(check, figures)}: {cure}")
    return "; ".join(found)


def _shown(value: float, check: Check) -> str:
    return f"{100 * value:.3g} %" if check.as_percent else f"{value:g}"


def _most(check: Check, figures: Mapping[str, float]) -> str:
    """Name the parts of a share: the process that took the most, and the hypervisor."""
    if "cpu.others" not in check.figures:
        return ""
    named = {name.partition(".")[2]: value for name, value in figures.items() if name.startswith("others.")}
    parts = [f"{name} {_shown(value, check)}" for name, value in named.items()]
    steal = figures.get("steal", 0.0)
    parts += [f"other virtual machines {_shown(steal, check)}"] if steal > 0 else []
    return f" ({', '.join(parts)})" if parts else ""


def check_engine(spec: EngineSpec, info: EngineInfo) -> str:
    """Compare what the engine says it is with what the case asked for.

    Returns the reason the run is INVALID, or "" when they agree. A ModelOpt configuration given by name has no
    row to compare with; its checkpoint was checked against its own description when it was built. What is unverified
    is let through: its context says so.
    """
    quant = QUANTIZATIONS.get(spec.quant)
    if quant is not None and info.quant_algo not in (quant.quant_algo, UNVERIFIED):
        return (
            f"the engine runs {info.quant_algo or 'unquantized weights'} where the case asks for {spec.quant} "
            f"({quant.quant_algo or 'unquantized weights'}); checkpoint {info.checkpoint}"
        )
    wanted = KV_CACHE_DTYPES[spec.kv_cache_dtype].kv_cache_quant_algo
    if wanted is not None and info.kv_cache_quant_algo not in (wanted, UNVERIFIED):
        return (
            f"the engine's KV cache is {info.kv_cache_quant_algo or 'not quantized'} where the case asks for "
            f"{spec.kv_cache_dtype}; checkpoint {info.checkpoint}"
        )
    asked = {"tp": spec.tp, "pp": spec.pp, "ep": spec.ep, **dict(spec.engine_options)}
    for name, value in asked.items():
        if name in info.options and info.options[name] != value:
            return f"the engine runs {name}={info.options[name]!r} where the case asks for {name}={value!r}"
    return ""
