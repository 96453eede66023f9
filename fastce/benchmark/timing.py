"""Timing of implementations that take turns in one process. Nothing here knows what they do.

On a shared machine the speed of everything drifts by tens of percent within seconds. Neighbours in
time drift together, so the ratio of two implementations is taken turn by turn, and its median
reported.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]

# libgomp's workers spin for about 7 ms after a region (300,000 spins of 23 ns): whoever comes next
# would share the cores with them. A turn starts after they have gone to sleep.
SETTLE_SECONDS = 0.010
WARM_SECONDS = 0.005  # wakes the own workers, fills the caches, and tells how long a call takes
WARM_CALLS = 2  # at least: the first region after an idle gap may cost libgomp 8 ms
TURN_SECONDS = 0.020
LONGEST_TURN = 5  # times the above: where each call is suddenly slow, as on a core shared by two
BATCH_SECONDS = 0.0002  # a clock read costs 0.05 us: 0.03 % of a batch
MIN_ROUNDS = 5  # the least with a median and quartiles worth the name
ENOUGH = 0.01  # stop early once a ratio's quartile range / sqrt(rounds) is this small


class Ratio(NamedTuple):
    """Median and quartiles over the rounds of one time divided by another."""

    median: float
    low: float
    high: float


def ratio(times: NDArray[np.float64], base: NDArray[np.float64]) -> Ratio:
    """`times / base`, turn by turn."""
    low, median, high = np.quantile(times / base, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high))


def one_turn(calls: Sequence[Call], turn_seconds: float = TURN_SECONDS) -> float:
    """Median seconds per call in one warmed turn; the calls (one per buffer) rotate."""
    clock = time.perf_counter
    stream = cycle(calls)
    ticks = [clock()]
    while len(ticks) <= WARM_CALLS or ticks[-1] - ticks[0] < WARM_SECONDS:
        next(stream)()
        ticks.append(clock())
    estimate = float(np.diff(ticks).min())
    batch = max(1, round(BATCH_SECONDS / estimate))
    samples: list[float] = []
    deadline = ticks[-1] + LONGEST_TURN * turn_seconds
    for _ in range(max(1, round(turn_seconds / (batch * estimate)))):
        begin = clock()
        for call in islice(stream, batch):
            call()
        end = clock()
        samples.append((end - begin) / batch)
        if end > deadline:
            break
    return float(np.median(samples))


def take_turns(
    participants: Mapping[str, Sequence[Call]], seconds: float, settle: float = SETTLE_SECONDS
) -> dict[str, NDArray[np.float64]]:
    """
    Seconds per call of each participant in each round.

    Rounds go on for `seconds` (and for at least `MIN_ROUNDS`), or until every ratio to the first
    participant is known well enough. Every other round runs backwards, so that nobody always
    follows the same neighbour.
    """
    times: dict[str, list[float]] = {name: [] for name in participants}
    order = list(participants)
    collecting = gc.isenabled()
    gc.disable()  # a collection would land in whoever's turn it is
    try:
        begin, n_rounds = time.perf_counter(), 0
        while n_rounds < MIN_ROUNDS or (
            time.perf_counter() - begin < seconds and not _settled(times)
        ):
            for name in order if n_rounds % 2 == 0 else reversed(order):
                time.sleep(settle)
                times[name].append(one_turn(participants[name]))
            n_rounds += 1
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in times.items()}


def _settled(times: Mapping[str, Sequence[float]]) -> bool:
    base, *others = (np.array(values) for values in times.values())
    ratios = [ratio(other, base) for other in others]
    return all((r.high - r.low) / r.median < ENOUGH * np.sqrt(len(base)) for r in ratios)
