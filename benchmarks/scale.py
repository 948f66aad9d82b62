"""How long a suite takes on 8 to 10,000 GPUs: a discrete simulation of the placement rules, against its lower bounds.

    python benchmarks/scale.py [RESULTS.json ...] [--copies N] [--order longest|given]

Cases and their times come from result files (`--inferperf-json`); without any, from the mix that `MIX` describes. The rules
are those that place engines (`pytest_inferperf.cluster.rules`), on nodes of 8 equal GPUs. Two costs of the cluster are
added to each case: what the head does one case after the other, and what a node does before the engine starts. With
`--order longest` the longest case is placed first; a run with `-n` deals so too, but engine by engine.
"""

from __future__ import annotations

import argparse
import heapq
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_inferperf.baselines.past import took
from pytest_inferperf.baselines.result_file import read_result_file
from pytest_inferperf.cluster.rules import Node, Request, bundle, fitting
from pytest_inferperf.engines.hardware import Gpu
from pytest_inferperf.model.case import GpuRequirement

PER_NODE = 8
SIZES = (8, 64, 512, 1_024, 4_096, 10_000)

HEAD_S = 0.03
"""CPU time of the head for one placement, given back again: `CPU of the head` of `python -m benchmarks.ray_cost`."""

NODE_S = 1.4
"""Our actor, from the grant until it answers: `granted until it answers` of the same script."""

MIX = (
    # Engines, GPUs of each, whole node, seconds from, seconds to: the spread of a nightly run, drawn log-uniformly.
    (12, 1, True, 300, 1_200),
    (12, 8, True, 600, 2_400),
    (12, 1, False, 300, 1_800),
    (12, 2, False, 300, 3_600),
    (8, 4, False, 900, 5_400),
    (4, 8, False, 1_800, 10_800),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case: what it asks of the cluster, and for how long."""

    request: Request
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a simulated run came to."""

    makespan_s: float
    longest_s: float
    """Nothing can end before its longest case."""

    work_s: float
    """Nor before the GPUs that were taken, whole nodes wholly, have been worked through."""

    utilization: float
    """Share of the GPU time until the end that cases had taken."""

    @property
    def bound_s(self) -> float:
        """The larger of the lower bounds."""
        return max(self.longest_s, self.work_s)


def nodes_of(gpus: int) -> list[Node]:
    """Return the nodes of a cluster of equal machines."""
    card = Gpu(name="NVIDIA B200", sm=100, memory_gib=178.0)
    return [
        Node(node_id=str(n), name=str(n), cpus=128.0, cpu_name="CPU", cores=128, gpus=(card,) * PER_NODE)
        for n in range(gpus // PER_NODE)
    ]


def simulate(jobs: Sequence[Job], nodes: Sequence[Node], *, head_s: float = HEAD_S, node_s: float = NODE_S) -> Outcome:
    """Run every job, in the order given where several fit. Raises `ValueError` for one that fits nowhere.

    As Ray does it, a job that fits now does not wait for one before it that does not; it goes to the fullest node that has
    room.
    """
    waiting: dict[int, deque[tuple[int, float]]] = {}
    for number, job in enumerate(jobs):
        if not fitting(job.request, nodes[:1]):
            raise ValueError(f"{job.request.what} fits no node: {job.request.words}")
        taken = int(bundle(job.request, nodes[0])["GPU"])
        waiting.setdefault(taken, deque()).append((number, job.seconds))
    free: list[list[int]] = [[] for _ in range(PER_NODE + 1)]
    free[PER_NODE] = list(range(len(nodes)))
    room = [PER_NODE] * len(nodes)
    ends: list[tuple[float, int, int]] = []
    now = head = makespan = gpu_seconds = 0.0
    while ends or any(waiting.values()):
        while True:
            ready = [
                (queue[0][0], taken)
                for taken, queue in waiting.items()
                if queue and any(free[size] for size in range(taken, PER_NODE + 1))
            ]
            if not ready:
                break
            _, taken = min(ready)
            _, seconds = waiting[taken].popleft()
            size = next(size for size in range(taken, PER_NODE + 1) if free[size])
            node = free[size].pop()
            room[node] -= taken
            free[room[node]].append(node)
            head = max(head, now) + head_s
            end = head + node_s + seconds
            gpu_seconds += taken * (end - now)
            heapq.heappush(ends, (end, node, taken))
        if not ends:
            break
        now, node, taken = heapq.heappop(ends)
        makespan = now
        free[room[node]].remove(node)
        room[node] += taken
        free[room[node]].append(node)
    total = len(nodes) * PER_NODE
    work = sum(bundle(job.request, nodes[0])["GPU"] * job.seconds for job in jobs)
    return Outcome(
        makespan_s=makespan,
        longest_s=max(job.seconds for job in jobs),
        work_s=work / total,
        utilization=gpu_seconds / (total * makespan),
    )


def mixed_jobs(seed: int = 0) -> list[Job]:
    """Draw the jobs of `MIX`."""
    rng = random.Random(seed)
    jobs = []
    for count, gpus, whole, low, high in MIX:
        request = Request(what=f"{gpus} GPUs", need=GpuRequirement(count=gpus), whole_node=whole)
        jobs += [Job(request=request, seconds=low * (high / low) ** rng.random()) for _ in range(count)]
    rng.shuffle(jobs)
    return jobs


def jobs_of(paths: Sequence[Path]) -> list[Job]:
    """Return the jobs of result files. What ran on a CPU is taken for an engine of one GPU."""
    jobs = []
    for path in paths:
        for record in read_result_file(path).records:
            result = record.result
            need = GpuRequirement(count=result.case.engine.world_size)
            request = Request(what=record.nodeid, need=need, whole_node=result.case.workload is not None)
            jobs.append(Job(request=request, seconds=took(result).total_s))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--copies", type=int, default=50, help="How many times as many cases (models, precisions)")
    parser.add_argument("--order", choices=("longest", "given"), default="longest")
    given = parser.parse_args()
    jobs = (jobs_of(given.results) if given.results else mixed_jobs()) * given.copies
    if given.order == "longest":
        jobs.sort(key=lambda job: -job.seconds)
    print(f"{len(jobs)} cases, {sum(job.seconds for job in jobs) / 3600:.0f} hours in all, order: {given.order}\n")
    print("| GPUs | makespan | longest case | work / GPUs | over the bound | GPUs taken | simulated in |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for gpus in SIZES:
        start = time.perf_counter()
        found = simulate(jobs, nodes_of(gpus))
        print(
            f"| {gpus:,} | {found.makespan_s / 3600:.2f} h | {found.longest_s / 3600:.2f} h | {found.work_s / 3600:.2f} h | "
            f"{found.makespan_s / found.bound_s - 1:.1%} | {found.utilization:.0%} | {time.perf_counter() - start:.1f} s |"
        )


if __name__ == "__main__":
    main()
