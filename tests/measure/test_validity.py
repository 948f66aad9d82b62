"""Is a run invalid? A pure function of what telemetry stored, and of the limits."""

from __future__ import annotations

import pytest

from pytest_inferperf.measure.validity import CHECKS, Check, check_telemetry
from pytest_inferperf.model.limits import LIMITS

LIMIT = {limit.ini: limit.default for limit in LIMITS}
QUIET = {
    "window_s": 4.0,
    "cpu.count": 2.0,
    "cpu.load_1m": 17.0,
    "cpu.own": 0.9,
    "cpu.others": 0.03,
    "cpu.steal": 0.01,
    "cpu.throttled": 0.0,
    "cpu.throttled_s": 0.0,
    "cpu.clock": 0.6,
    "cpu.clock_mhz": 2400.0,
    "gpu0.throttled": 0.0,
    "gpu0.power_capped": 1.0,
    "gpu0.sm_clock_mhz.min": 1300.0,
    "gpu0.sm_clock": 0.7,
    "gpu0.temperature_c.max": 81.0,
    "gpu0.power_limit": 1.0,
    "gpu0.other_processes": 0.0,
    "gpu0.ecc_errors": 0.0,
}


@pytest.mark.parametrize("telemetry", [QUIET, {}], ids=["quiet", "nothing is known"])
def test_a_quiet_machine_is_valid(telemetry: dict[str, float]) -> None:
    assert check_telemetry(telemetry, LIMIT) == ""


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (
            {"cpu.others": 0.333, "cpu.others.yes": 0.31},
            "others took 34.3 % of the CPU time, where 20 % is the limit (yes 31 %, other virtual machines 1 %): stop "
            "what runs beside the test, or set inferperf_max_interference in the ini file",
        ),
        (
            {"cpu.others": 0.0, "cpu.steal": 0.25},
            "others took 25 % of the CPU time, where 20 % is the limit (other virtual machines 25 %): stop what runs "
            "beside the test, or set inferperf_max_interference in the ini file",
        ),
        (
            {"cpu.throttled": 0.4},
            "the CPU quota throttled 40 % of its periods, where 5 % is the limit: give the engine no more threads than "
            "the quota has CPUs, or the container more CPUs, or set inferperf_max_throttled in the ini file",
        ),
        (
            {"cpu.clock": 0.17},
            "the CPUs ran at 17 % of their highest clock, where 30 % is the least: look at the power supply, the "
            "cooling and the frequency governor, or set inferperf_min_clock in the ini file",
        ),
        (
            {"gpu0.throttled": 0.06},
            "gpu0 was slowed down by heat or hardware in 6 % of the time, where 5 % is the limit: look at the cooling "
            "and the power supply (nvidia-smi -q -d PERFORMANCE), or set inferperf_max_throttled in the ini file",
        ),
        (
            {"gpu0.sm_clock": 0.106},
            "gpu0 ran at 10.6 % of its highest SM clock, where 30 % is the least: look for locked clocks and power "
            "limits (nvidia-smi -q -d CLOCK,PERFORMANCE), or set inferperf_min_clock in the ini file",
        ),
        (
            {"gpu0.power_limit": 0.5},
            "the power limit of gpu0 is 50 % of its default, where 100 % is the least: set the default again "
            "(nvidia-smi -q -d POWER shows it), or set inferperf_min_power_limit in the ini file",
        ),
        (
            {"gpu0.other_processes": 2.0},
            "other processes that computed on gpu0: 2, where 0 is the limit: stop them (nvidia-smi names them), or set "
            "inferperf_max_gpu_processes in the ini file",
        ),
        (
            {"gpu0.ecc_errors": 1.0},
            "memory errors of gpu0 that ECC could not correct: 1: take the GPU out of service (nvidia-smi -q -d ECC)",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_check_fails_and_says_why(figures: dict[str, float], expected: str) -> None:
    assert check_telemetry(QUIET | figures, LIMIT) == expected


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.figures[0])
def test_the_limit_itself_is_allowed_and_decides(check: Check) -> None:
    name = check.figures[0].replace("gpu.", "gpu3.")
    limit = LIMIT[check.ini] if check.ini else 0.0
    beyond = limit - 0.01 if check.is_floor else limit + 0.01
    assert check_telemetry({name: limit}, LIMIT) == ""
    assert check_telemetry({name: beyond}, LIMIT) != ""
    if check.ini:
        assert check_telemetry({name: beyond}, LIMIT | {check.ini: beyond}) == ""
        assert check.ini in check_telemetry({name: beyond}, LIMIT)


OF_ANSWERS = {"inferperf_min_agreement", "inferperf_max_count_error"}
"""Limits on what was answered, not on the machine: test_agreement and test_honesty have them."""


def test_every_limit_has_a_check() -> None:
    assert {check.ini for check in CHECKS} - {""} == set(LIMIT) - OF_ANSWERS


def test_everything_is_named() -> None:
    found = check_telemetry({"gpu1.power_limit": 0.9, "gpu0.throttled": 1.0, "cpu.others": 0.5}, LIMIT)
    assert [part.split(":")[0] for part in found.split("; ")] == [
        "others took 50 % of the CPU time, where 20 % is the limit",
        "gpu0 was slowed down by heat or hardware in 100 % of the time, where 5 % is the limit",
        "the power limit of gpu1 is 90 % of its default, where 100 % is the least",
    ]
