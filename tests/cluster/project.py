"""The conftest.py of a project whose engine answers slowly, and says in `asked.log` where and what it was asked.

It says in `loads.log` that it loads, and goes on loading while a file `hold` names it.
"""

from __future__ import annotations

CONFTEST = """
from pathlib import Path
from types import SimpleNamespace

from pytest_inferperf.engines import launch

launch.resolve_backend = lambda *_, **__: SimpleNamespace(class_path="slow_backend:SlowEngine")
launch.ensure_checkpoint = lambda spec, **_: Path(__file__).parent / "tiny-llama"
"""

BACKEND = """
import os
import time
import zlib
from pathlib import Path

from pytest_inferperf.engines.interface import Engine, Generation, LogLikelihood, TokenChunk
from pytest_inferperf.model.results import EngineInfo, Hardware


def logprob(request):
    # Any figure, as long as it is of this request alone.
    return -float(zlib.crc32(repr((request.context, request.continuation)).encode()))


class SlowEngine(Engine):
    prefix_token_id, eos_token_id, vocab_size, special_token_ids = 1, 2, 1000, frozenset({1, 2})

    def __init__(self, spec, *, checkpoint, progress):
        self.spec = spec
        self.folder = Path(checkpoint).parent
        with (self.folder / "loads.log").open("a") as log:
            log.write(f"{os.getpid()} {spec.served_model_name}\\n")
        while self._is_held():
            time.sleep(0.05)
        self.info = EngineInfo(
            backend="slow", hardware=Hardware(name="CPU", count=1, kind="cpu"), quant_algo=None, kv_cache_quant_algo=None,
            compute_dtype="float32", simulated=False, max_model_len=64, checkpoint=checkpoint, checkpoint_hash="0",
        )

    def _slowly(self, count):
        with (self.folder / "asked.log").open("a") as log:
            log.write(f"{os.getpid()} {count}\\n")
        # Nobody answers before as many were asked as are to take part.
        deadline = time.monotonic() + 80
        while len({row.split()[0] for row in (self.folder / "asked.log").read_text().splitlines()}) < self._wanted():
            assert time.monotonic() < deadline, "not all took part"
            time.sleep(0.05)
        time.sleep(float((self.folder / "seconds").read_text()))

    def _is_held(self):
        hold = self.folder / "hold"
        return hold.exists() and self.spec.served_model_name in hold.read_text().split()

    def _wanted(self):
        wanted = self.folder / "wanted"
        return int(wanted.read_text()) if wanted.exists() else 0

    def encode(self, texts, *, add_special_tokens=False):
        return [tuple(text.encode()) for text in texts]

    def decode(self, sequences, *, skip_special_tokens=True):
        return ["".join(map(chr, ids)) for ids in sequences]

    def generate(self, requests, *, concurrency):
        self._slowly(len(requests))
        return [
            Generation(
                token_ids=tuple(range(3, 3 + item.max_tokens)), text="", finish_reason="length",
                prompt_tokens=len(item.prompt),
                token_times_s=tuple(0.01 * (n + 1) for n in range(item.max_tokens)),
            )
            for item in requests
        ]

    def stream(self, request):
        yield TokenChunk(token_ids=(3,), text="", time_s=0.01)

    def loglikelihood(self, requests, *, concurrency):
        self._slowly(len(requests))
        return [LogLikelihood(logprob=logprob(item), is_greedy=True) for item in requests]

    def peak_memory_bytes(self):
        return 1

    def close(self):
        pass
"""

EVALUATION = """
import pytest
from pytest_inferperf.engines.interface import LogLikelihoodRequest
from slow_backend import logprob

pytestmark = pytest.mark.inferperf(model="tiny-llama")


def test_evaluation(inferperf_engine):
    asked = [LogLikelihoodRequest(context=(n,), continuation=(5,)) for n in range({questions})]
    with inferperf_engine.evaluators({replicas}) as engine:
        found = engine.loglikelihood(asked, concurrency=1)
        notes = engine.notes
    assert [item.logprob for item in found] == list(map(logprob, asked))
    print("NOTES", *notes)
"""

IMPOSSIBLE = """

@pytest.mark.requires_gpu(count=4)
def test_big(inferperf_engine):
    pass
"""

REPLICAS = """
from pathlib import Path

import pytest

pytestmark = pytest.mark.inferperf(model="tiny-llama", task=TASK, limit=400)


def wait_for_engines(config, count):
    if config.getoption("inferperf_ray"):
        Path("wanted").write_text(str(count))


@pytest.mark.inferperf(replicas=1)
def test_one(inferperf):
    inferperf.evaluate()


@pytest.mark.inferperf(replicas=2)
def test_two(inferperf, pytestconfig):
    wait_for_engines(pytestconfig, 2)
    inferperf.evaluate()


@pytest.mark.inferperf(replicas=3)
def test_three(inferperf, pytestconfig):
    wait_for_engines(pytestconfig, 4)
    inferperf.evaluate()
"""

SESSIONS = """
import pytest


@pytest.mark.inferperf(model="tiny-llama", isl=8, osl=4, rounds=4, warmup_rounds=0, sessions=2)
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_sessions(inferperf):
    inferperf.measure()
"""

HEAD = """
import pytest

LOAD = dict(isl=8, osl=4, rounds=2, warmup_rounds=0, sessions=1)


@pytest.mark.inferperf(model="tiny-llama", **LOAD)
@pytest.mark.throughput_floor("output_throughput")
def test_before(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(model="tiny-llama", **(LOAD | dict(rounds=40, sessions=3)))
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_running(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(model="tiny-llama", **LOAD)
@pytest.mark.throughput_floor(output_throughput=0.001)
def test_same_engine(inferperf):
    inferperf.measure()


@pytest.mark.inferperf(model="tiny-llama", served_model_name="b")
@pytest.mark.requires_gpu(count=1)
def test_another_engine(inferperf_engine):
    pass


@pytest.mark.inferperf(model="tiny-llama", served_model_name="c")
def test_a_third_engine(inferperf_engine):
    pass


def test_without_a_cluster():
    pass
"""

INI = """[pytest]
addopts = -p no:cacheprovider -p no:xdist -p no:benchmark
inferperf_max_interference = 1
inferperf_max_throttled = 1
inferperf_min_clock = 0
inferperf_gpu_timeout = {timeout_s}
"""
