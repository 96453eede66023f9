"""How near do rows out of the caches come to the speed of memory, in every dtype?

Loss and gradient beside a streaming copy of the logits, the loss alone beside a streaming read, in
turns. The goals: 0.85 of the copy for 2048x32000 and 512x128256 in float32, 0.80 for 16384x2048 and
for float64, 0.70 for rows of a million classes, 0.55 for halves; a loss within 1.15 of the read;
halves in a turn with the same logits as float32, 1.5 times as fast.
"""

import argparse
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastce
from fastce._kernel import stream_copy, stream_read
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import ratio, take_turns

CASES = (
    ("float32", "2048x32000,512x128256,16384x2048,64x1000000,8192x1000"),
    ("float64", "1024x32000,8192x2048"),
    ("float16", "2048x32000,16384x2048,8192x1000"),
    ("bfloat16", "2048x32000,16384x2048,8192x1000"),
)


def dtype_of(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    if find_spec("ml_dtypes") is None:
        return None
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def bytes_of(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory as float32: what a copy takes, whatever the numbers mean."""
    return array.reshape(-1).view(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="per size")
    options = parser.parse_args()
    n_threads = fastce.get_num_threads()
    print(header(describe()), end="\n\n")
    print(
        f"{'dtype':9}{'size':>15}{'with grad':>11}{'of a copy':>11}{'loss':>10}{'of read':>11}"
        f"{'float32 / this':>16}"
    )
    for name, shapes in CASES:
        dtype = dtype_of(name)
        if dtype is None:
            print(f"{name:10} needs ml_dtypes")
            continue
        for shape in parse(shapes):
            floats, targets = make(shape.n_rows, shape.n_classes)
            logits = floats.astype(dtype)
            grad = touched(logits)
            calls = {
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
            times = take_turns(calls, options.seconds)
            print(
                f"{name:10}{shape.size:>14}{time_text(float(np.median(times['ours']))):>11}"
                f"{ratio(times['copy'], times['ours']).median:11.2f}"
                f"{time_text(float(np.median(times['loss']))):>10}"
                f"{ratio(times['loss'], times['read']).median:11.2f}"
                + (f"{ratio(times['floats'], times['ours']).median:16.2f}" if is_half else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
