"""How near do rows out of the caches come to the speed of memory, in every dtype?

Loss and gradient beside a streaming copy of the logits, the loss alone beside a streaming read, in
turns; halves also beside the same logits as float32.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module  # and not `import ml_dtypes`: as in peers.py
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastce
from fastce._kernel import stream_copy, stream_read
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import Call, ratio, take_turns

# Sizes, and the share of the copy's speed that is wanted. 8192x1000 stays in many a cache, which
# the copy does not use.
CASES: tuple[tuple[str, dict[str, float | None]], ...] = (
    (
        "float32",
        {
            "2048x32000": 0.85,
            "512x128256": 0.85,
            "16384x2048": 0.80,
            "64x1000000": 0.70,
            "8192x1000": None,
        },
    ),
    ("float64", {"1024x32000": 0.80, "8192x2048": 0.80}),
    ("float16", {"2048x32000": 0.55, "16384x2048": 0.55, "8192x1000": None}),
    ("bfloat16", {"2048x32000": 0.55, "16384x2048": 0.55, "8192x1000": None}),
)
LOSS_OF_READ = 1.15


def dtype_of(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    if find_spec("ml_dtypes") is None:
        return None
    return np.dtype(import_module("ml_dtypes").bfloat16)


def bytes_of(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as float32: what a copy takes, whatever the numbers mean."""
    return array.reshape(-1).view(np.float32)


def figures(seconds: float) -> Iterator[Figure | str]:
    n_threads = fastce.get_num_threads()
    for name, goals in CASES:
        dtype = dtype_of(name)
        if dtype is None:
            yield f"{name}: ml_dtypes is not installed"
            continue
        for size, goal in goals.items():
            (shape,) = parse(size)
            floats, targets = make(shape.n_rows, shape.n_classes)
            logits = floats.astype(dtype)
            grad = touched(logits)
            calls: dict[str, Sequence[Call]] = {
                "ours": [partial(fastce.cross_entropy_with_grad, logits, targets, out=grad)],
                "copy": [partial(stream_copy, bytes_of(logits), bytes_of(grad), n_threads)],
                "loss": [partial(fastce.cross_entropy, logits, targets)],
                "read": [partial(stream_read, bytes_of(logits), n_threads)],
            }
            is_half = dtype.itemsize == 2
            if is_half:
                out = touched(floats)
                calls["floats"] = [
                    partial(fastce.cross_entropy_with_grad, floats, targets, out=out)
                ]
            times = take_turns(calls, seconds * len(calls))
            case, ours = f"{name} {size}", float(np.median(times["ours"]))
            speed = ratio(times["copy"], times["ours"]).median
            yield Figure(case, speed, "of a streaming copy's speed", ours, at_least=goal)
            yield Figure(
                f"{case}, loss alone",
                ratio(times["loss"], times["read"]).median,
                "times a streaming read",
                float(np.median(times["loss"])),
                at_most=LOSS_OF_READ if name == "float32" and goal else None,
            )
            if is_half:
                gain = ratio(times["floats"], times["ours"]).median
                yield Figure(f"{case}, beside float32", gain, "times as fast", ours)
