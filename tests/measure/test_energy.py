"""Joules and money per token: from counters and a price, or not at all; and gates on them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_inferperf.baselines.entries import MetricBaseline, PerformanceEntry, Provenance
from pytest_inferperf.engines.interface import Generation, GenerationRequest
from pytest_inferperf.gates.performance import judge_performance
from pytest_inferperf.measure.session import measure_session
from pytest_inferperf.measure.summary import summarise_round, with_costs
from pytest_inferperf.model.case import Workload
from pytest_inferperf.model.gates import PerformanceGate
from pytest_inferperf.model.metrics import parse_metric, per_megawatt
from pytest_inferperf.model.results import Hardware, PerformanceResult, Round, Session
from pytest_inferperf.model.verdicts import GateVerdict, Status
from tests.measure.nvml import Gpu, NewNvml
from tests.measure.test_session import StubEngine, generation, good

ENERGY, COST = "energy_per_token_j", "cost_per_million_tokens"
WORKLOAD = Workload(isl=4, osl=3, concurrency=2, rounds=2, warmup_rounds=1)
"""6 output tokens a round."""


class GpuEngine(StubEngine):
    """Its GPUs take energy while it generates."""

    def __init__(self, gpus: Sequence[Gpu], mj: Sequence[int], *, count: int, devices: tuple[str, ...] = ()) -> None:
        super().__init__(good)
        self.info = replace(self.info, hardware=Hardware(name="NVIDIA B200", count=count, kind="gpu"))
        self._gpus = gpus
        self._mj = mj
        self._devices = devices

    @property
    def devices(self) -> tuple[str, ...]:
        return self._devices

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        for gpu, mj in zip(self._gpus, self._mj, strict=True):
            if gpu.energy_mj is not None:
                gpu.energy_mj += mj
        return super().generate(requests, concurrency=concurrency)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """Two GPUs, which have counted before."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [Gpu("GPU-a", energy_mj=5_000_000), Gpu("GPU-b", energy_mj=7_000_000)]
    monkeypatch.setitem(sys.modules, "pynvml", NewNvml(*found))
    return found


def figures(engine: StubEngine, metric: str, *, price: float = 0.0) -> list[float]:
    """Return a metric of every round in which it was measured."""
    session = measure_session(engine, WORKLOAD, gpu_hour_price=price)
    return [item.metrics[metric] for item in session.rounds if metric in item.metrics]


def test_energy_is_what_the_counters_of_all_gpus_rose_by(gpus: list[Gpu]) -> None:
    """12 J and 6 J over 6 tokens: 3 J each. The warm-up is not in it."""
    assert figures(GpuEngine(gpus, [12_000, 6_000], count=2), ENERGY) == pytest.approx([3.0, 3.0])


def test_only_the_gpus_of_the_engine_count(gpus: list[Gpu]) -> None:
    assert figures(GpuEngine(gpus, [12_000, 6_000], count=1), ENERGY) == pytest.approx([2.0, 2.0])
    given = GpuEngine(gpus, [12_000, 6_000], count=1, devices=("GPU-b",))
    assert figures(given, ENERGY) == pytest.approx([1.0, 1.0])


def test_a_gpu_that_does_not_count_leaves_no_figure(gpus: list[Gpu]) -> None:
    gpus[1].energy_mj = None
    assert figures(GpuEngine(gpus, [12_000, 6_000], count=2), ENERGY) == []


def test_a_gpu_that_fell_off_the_bus_leaves_no_figure(gpus: list[Gpu]) -> None:
    gpus[1].uuid = "lost"
    assert figures(GpuEngine(gpus, [12_000, 6_000], count=2), ENERGY) == []


def test_a_counter_that_stands_still_has_measured_nothing(gpus: list[Gpu]) -> None:
    assert figures(GpuEngine(gpus, [0, 0], count=2), ENERGY) == []


def test_without_a_driver_there_is_no_figure(gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert figures(GpuEngine(gpus, [12_000, 6_000], count=2), ENERGY) == []


def test_a_cpu_has_neither_energy_nor_cost(gpus: list[Gpu]) -> None:
    assert figures(StubEngine(good), ENERGY) == []
    assert figures(StubEngine(good), COST, price=4.0) == []


def test_nvml_is_given_back_after_each_round(gpus: list[Gpu]) -> None:
    nvml = sys.modules["pynvml"]
    figures(GpuEngine(gpus, [1, 1], count=2), ENERGY)
    assert isinstance(nvml, NewNvml)
    assert not nvml.is_open


def round_of(*, duration_s: float, tokens: int) -> Round:
    answers = [generation(*(0.1 * (n + 1) for n in range(tokens)))]
    return summarise_round(answers, duration_s=duration_s, devices=1, peak_memory_bytes=0)


def test_cost_by_hand() -> None:
    """8 GPUs at 4 an hour are 32 an hour; 9 s of it are .08, for 1,000 tokens 80 a million."""
    found = with_costs(round_of(duration_s=9.0, tokens=1000), energy_j=None, price_per_hour=8 * 4.0)
    assert found.metrics[COST] == pytest.approx(80.0)
    assert ENERGY not in found.metrics


def test_cost_needs_a_price() -> None:
    assert COST not in with_costs(round_of(duration_s=9.0, tokens=10), energy_j=1.0, price_per_hour=0.0).metrics


def test_nothing_that_came_out_has_no_price() -> None:
    empty = round_of(duration_s=9.0, tokens=0)
    assert with_costs(empty, energy_j=5.0, price_per_hour=4.0) == empty


def test_price_reaches_the_rounds(gpus: list[Gpu]) -> None:
    assert len(figures(GpuEngine(gpus, [1, 1], count=2), COST, price=4.0)) == 2
    assert figures(GpuEngine(gpus, [1, 1], count=2), COST) == []


def test_a_joule_a_token_is_a_million_tokens_a_second_per_megawatt() -> None:
    assert per_megawatt(1.0) == 1e6
    assert per_megawatt(8.0) == 125_000


# Gates.

BASELINE = tuple((level, level) for level in (1.98, 1.99, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.01, 2.02))
"""Ten sessions around 2, half a percent apart."""


def judged(metric: str, *values: float, measured_as: str = "") -> GateVerdict:
    rounds = [
        Session(
            rounds=(replace(round_of(duration_s=1.0, tokens=2), metrics={measured_as or metric: value}),),
            warmup_rounds=1,
        )
        for value in values
    ]
    entry = PerformanceEntry(
        path="baselines/performance/x/y.json",
        key="k",
        metrics={metric: MetricBaseline(sessions=BASELINE)},
        warmup_rounds=1,
        provenance=Provenance(kind="measured"),
    )
    gate = PerformanceGate(metric=parse_metric(metric))
    return judge_performance(gate, PerformanceResult(sessions=tuple(rounds)), entry, 0.05)


@pytest.mark.parametrize("metric", [ENERGY, COST])
@pytest.mark.parametrize(
    ("sessions", "status"),
    [((2.0, 2.0), Status.PASS), ((1.8, 1.8), Status.PASS), ((2.2, 2.2), Status.FAIL)],
)
def test_a_rise_fails_and_no_rise_passes(metric: str, sessions: tuple[float, ...], status: Status) -> None:
    assert judged(metric, *sessions).status is status


@pytest.mark.parametrize(
    ("metric", "lack"),
    [
        (ENERGY, "GPUs that all count their energy, and an engine that is not in a server"),
        (COST, "an engine on GPUs, and their price: inferperf_gpu_hour_price in the ini file"),
    ],
)
def test_a_gate_without_its_figure_fails_and_says_what_it_needs(metric: str, lack: str) -> None:
    verdict = judged(metric, 1.0, measured_as="output_throughput")
    assert (verdict.status, verdict.reason) == (Status.FAIL, f"was not measured: it needs {lack}")


def test_a_row_of_energy_says_what_a_megawatt_yields() -> None:
    assert "energy_per_token_j: 500000 tok/s per megawatt of GPU power" in judged(ENERGY, 2.0).notes
    assert not any("megawatt" in note for note in judged(COST, 2.0).notes)
