"""What does each instruction set give? Baseline, AVX2 and AVX-512 side by side, one thread.

Each runs in a process of its own with FASTCE_ISA set; the processes take turns of a fixed length.
"""

import json
from collections.abc import Iterator
from functools import partial

import numpy as np

import fastce
from fastce.benchmark.regimes.child import run
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import one_turn

SHAPES = "64x10,4096x10,4096x32,256x1000,1024x32000"
ROUNDS = 5
BASELINE_GOAL = 6.0  # times the best, of AVX-512


def child(shapes: str) -> list[float]:
    """Seconds per shape with the instruction set that the environment names."""
    seconds = []
    for shape in parse(shapes):
        logits, targets = make(shape.n_rows, shape.n_classes)
        grad = touched(logits)
        call = partial(fastce.cross_entropy_with_grad, logits, targets, out=grad, n_threads=1)
        seconds.append(float(np.median([one_turn([call]) for _ in range(5)])))
    return seconds


def figures(seconds: float) -> Iterator[Figure]:
    config = fastce.show_config(mode="dicts")
    assert config is not None
    isas = config["isa"]["found"]  # fastest first
    rounds = [
        [json.loads(run(__name__, SHAPES, environment={"FASTCE_ISA": isa})) for isa in isas]
        for _ in range(ROUNDS)
    ]
    times = np.array(rounds)  # round, ISA, shape
    for i, shape in enumerate(parse(SHAPES)):
        for j, isa in enumerate(isas[1:], start=1):
            yield Figure(
                f"{shape.size}, {isa}",
                float(np.median(times[:, j, i] / times[:, 0, i])),
                f"times {isas[0]}",
                float(np.median(times[:, j, i])),
                at_most=BASELINE_GOAL if isa == "baseline" else None,
            )
