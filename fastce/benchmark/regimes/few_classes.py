"""How near does one thread come to one exp per element, where rows are short?

Loss and gradient of 4096 rows against np.exp over the same array, both into buffers.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

import fastce
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, touched
from fastce.benchmark.timing import ratio, take_turns

N_ROWS = 4096
GOALS = {2: 3.5, 10: 2.0, 32: 2.0}


def figures(seconds: float) -> Iterator[Figure]:
    for n_classes, goal in GOALS.items():
        logits, targets = make(N_ROWS, n_classes)
        grad = touched(logits)
        ours = partial(fastce.cross_entropy_with_grad, logits, targets, out=grad, n_threads=1)
        calls = {"exp": [partial(np.exp, logits, grad)], "ours": [ours]}
        times = take_turns(calls, seconds * len(calls))
        yield Figure(
            f"{N_ROWS}x{n_classes}, one thread",
            ratio(times["ours"], times["exp"]).median,
            "times np.exp",
            float(np.median(times["ours"])),
            at_most=goal,
        )
