"""What others have of a node: what Ray has handed out there and is not ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

import pytest

from pytest_inferperf.cluster import host as hosts
from pytest_inferperf.cluster.host import Host
from pytest_inferperf.cluster.neighbours import taken_by_others, what_others_have
from pytest_inferperf.model.sharing import CPUS_OF_OTHERS, GPUS_OF_OTHERS

NODE = {"CPU": 8.0, "GPU": 4.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("free", "ours", "cpus", "gpus"),
    [
        ({"CPU": 7.0, "GPU": 3.0}, {"CPU": 1.0, "GPU": 1.0}, 0.0, 0.0),
        ({"CPU": 4.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}, 3.0, 2.0),
        ({}, {"CPU": 1.0}, 7.0, 4.0),
        ({"CPU": 6.7, "GPU": 4.0}, {"CPU": 1.0}, 0.3, 0.0),
        # Ray counts a place that was just given back, or granted, a little late.
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 1.0}, 0.0, 0.0),
    ],
    ids=["nobody", "others", "nothing free", "a part of a CPU", "counted late"],
)
def test_what_is_neither_free_nor_ours_is_of_others(
    free: Mapping[str, float], ours: Mapping[str, float], cpus: float, gpus: float
) -> None:
    assert what_others_have(NODE, free, ours) == {CPUS_OF_OTHERS: cpus, GPUS_OF_OTHERS: gpus}


def test_a_node_without_gpus_has_none_of_others() -> None:
    assert what_others_have({"CPU": 2.0}, {"CPU": 1.0}, {"CPU": 1.0})[GPUS_OF_OTHERS] == 0


def test_where_ray_says_nothing_nothing_is_known() -> None:
    """This process is no actor: absence, and not 0, nor a cluster that starts because somebody asks."""
    assert taken_by_others() == {}
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize(
    ("begin", "end", "found"),
    [
        ({CPUS_OF_OTHERS: 2.0}, {CPUS_OF_OTHERS: 0.0}, 2.0),
        ({CPUS_OF_OTHERS: 0.0}, {CPUS_OF_OTHERS: 3.0}, 3.0),
        ({}, {CPUS_OF_OTHERS: 0.0}, None),
        ({CPUS_OF_OTHERS: 0.0}, {}, None),
    ],
    ids=["left", "came", "unknown at its begin", "unknown at its end"],
)
def test_a_session_says_the_most_that_others_had_where_both_ends_are_known(
    monkeypatch: pytest.MonkeyPatch, begin: Mapping[str, float], end: Mapping[str, float], found: float | None
) -> None:
    said: Iterator[Mapping[str, float]] = iter([begin, end])
    monkeypatch.setattr(hosts, "taken_by_others", lambda: next(said))
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
    host = Host(0)
    host.watch(json.dumps({"name": "cpu", "count": 1, "kind": "cpu"}))
    assert json.loads(host.watched()).get(CPUS_OF_OTHERS) == found
