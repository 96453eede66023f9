"""What does a call cost that has next to nothing to compute?

Loss and gradient against np.exp over the same array: both allocating their result, and both writing
to a buffer.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastce
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, touched
from fastce.benchmark.timing import Call, ratio, take_turns

ROWS = (1, 64, 256)
GOAL = 3.0


def calls_of(
    logits: NDArray[Any], targets: NDArray[Any], grad: NDArray[Any]
) -> dict[str, Sequence[Call]]:
    """Each as it stands in a user's code: a partial with keywords would make a dict a call."""
    return {
        "exp": [lambda: np.exp(logits)],
        "ours": [lambda: fastce.cross_entropy_with_grad(logits, targets)],
        "exp out": [lambda: np.exp(logits, out=grad)],
        "ours out": [lambda: fastce.cross_entropy_with_grad(logits, targets, out=grad)],
    }


def figures(seconds: float) -> Iterator[Figure]:
    for n_rows in ROWS:
        logits, targets = make(n_rows, 10)
        calls = calls_of(logits, targets, touched(logits))
        times = take_turns(calls, seconds * len(calls))
        for how, end in (("allocating", ""), ("into a buffer", " out")):
            ours = times["ours" + end]
            yield Figure(
                f"{n_rows}x10, {how}",
                ratio(ours, times["exp" + end]).median,
                "times np.exp",
                float(np.median(ours)),
                at_most=GOAL,
            )
