"""Is the time linear in rows x classes, and what do all threads give?

Loss and gradient from a thousand to a hundred million elements, rows of 10, 1000 and 100,000
classes, one thread and all of them in turns.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

import fastce
from fastce.benchmark.machine import last_level_cache
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, touched
from fastce.benchmark.timing import ratio, take_turns

CLASSES = (10, 1000, 100_000)
DECADES = np.arange(3, 8.01, 0.5)
GOAL = 1.8  # of two threads
# The goal is for what is bound by arithmetic: a second thread's work outweighs what waking it
# costs, rows can be dealt out evenly, and nothing comes from memory.
LEAST_ELEMENTS, LEAST_ROWS = 3e5, 30


def figures(seconds: float) -> Iterator[Figure]:
    n_threads, cache = fastce.get_num_threads(), last_level_cache()
    for n_classes in CLASSES:
        for decade in DECADES:
            n_rows = round(10**decade / n_classes)
            if n_rows == 0:
                continue
            logits, targets = make(n_rows, n_classes)
            auto = partial(fastce.cross_entropy_with_grad, logits, targets, out=touched(logits))
            times = take_turns({"one": [partial(auto, n_threads=1)], "all": [auto]}, seconds / 2)
            one, n_elements = float(np.median(times["one"])), logits.size
            case = f"{n_rows}x{n_classes}"
            if n_threads == 1:
                yield Figure(case, one / n_elements * 1e9, "ns an element", one, shape=logits.shape)
                continue
            is_bound_by_arithmetic = (
                n_elements >= LEAST_ELEMENTS and n_rows >= LEAST_ROWS and 4 * logits.nbytes < cache
            )
            yield Figure(
                f"{case}, {one / n_elements * 1e9:.3f} ns/element on one",
                ratio(times["one"], times["all"]).median,
                f"times as fast on {n_threads} threads",
                one,
                at_least=GOAL if is_bound_by_arithmetic and n_threads == 2 else None,
                shape=logits.shape,
            )
