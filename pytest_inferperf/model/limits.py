"""How much a machine may disturb a measurement, and an engine deviate from itself, before the run is INVALID."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limit"]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit on what was recorded beside the figures; an ini setting of the same name moves it."""

    ini: str
    default: float
    help: str
    high: float | None = 1.0
    """Largest value that makes sense; the smallest is 0."""


LIMITS = (
    # One busy process takes a quarter of a laptop with 4 cores, and a third or more of 2 cores that an engine uses too;
    # a desktop at rest takes a few percent.
    Limit(
        ini="inferperf_max_interference",
        default=0.2,
        help="Largest share of the CPU time that other processes and other virtual machines may take; 1 for no limit",
    ),
    Limit(
        ini="inferperf_max_throttled",
        default=0.05,
        help="Largest share of the time that a CPU quota or the heat of a GPU may throttle; 1 for no limit",
    ),
    # Below the base clock of every data centre GPU (T4: 585 of 1590 MHz) and of CPUs that use all their cores:
    # a clock this low is a fault, not a working point.
    Limit(
        ini="inferperf_min_clock",
        default=0.3,
        help="Lowest clock of the CPU and of each GPU, as a share of its highest; 0 for no limit",
    ),
    Limit(
        ini="inferperf_min_power_limit",
        default=1.0,
        help="Lowest power limit of a GPU, as a share of its default limit; 0 for no limit",
    ),
    Limit(
        ini="inferperf_max_gpu_processes",
        default=0.0,
        help="Largest number of other processes that compute on the same GPU",
        high=None,
    ),
    # Greedy tokens that flip by the size of the batch, 1 to 3 of 100, leave half to a quarter of 128 tokens in common;
    # answers to other questions, or to none, have nothing in common but chance.
    Limit(
        ini="inferperf_min_agreement",
        default=0.25,
        help="Least share of an answer under load that must be as at concurrency 1, in the mean; 0 for no limit",
    ),
    # Text that is tokenized again has up to some 10 % fewer tokens than were generated, and special tokens have no text.
    Limit(
        ini="inferperf_max_count_error",
        default=0.3,
        help="Largest share by which the tokens that a server counts may differ from those in its text; 1 for no limit",
    ),
)
"""The ini settings of the validity checks. Shares of 1."""
