"""Does the automatic choice of threads ever make a call slower than n_threads=1?

Loss and gradient, the time of the automatic choice divided by the serial one's: called back to
back; the first call after 20 ms of idleness; in turns with a PyTorch op on its own OpenMP threads;
and with another process burning one core. The goals are 1.10, 1.25, 1.25 and 1.3.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import ratio, take_turns

SHAPES = "64x10,1024x10,4096x10,60000x10,256x1000,8192x1000,512x32000"
IDLE_SECONDS = 0.020  # libgomp's workers have given up spinning after 7
REPEATS = 41  # of a first call after idleness: 2 x 41 x 20 ms
GOALS = {"hot": 1.10, "after idle": 1.25, "with torch": 1.25, "neighbour": 1.3}

Call = Callable[[], object]


def back_to_back(serial: Call, auto: Call, seconds: float) -> tuple[float, float]:
    """The ratio, and the serial call's median seconds."""
    times = take_turns({"serial": [serial], "auto": [auto]}, seconds)
    return ratio(times["auto"], times["serial"]).median, float(np.median(times["serial"]))


def after_idle(serial: Call, auto: Call) -> float:
    return _first_calls(serial, auto, lambda: time.sleep(IDLE_SECONDS))


def with_torch(serial: Call, auto: Call) -> float:
    """The call alone is timed; before each, an elementwise op of 0.2 ms on two threads."""
    import torch

    torch.set_num_threads(fastce.get_num_threads())
    tensor = torch.ones(2**20)
    return _first_calls(serial, auto, lambda: tensor.mul_(1.0))


def _first_calls(serial: Call, auto: Call, before: Call) -> float:
    times = np.empty((REPEATS, 2))
    for row in times:
        for i, call in enumerate((serial, auto)):
            # A few of the same kind first: the pool must be as this pattern leaves it, not the
            # other's.
            for _ in range(3):
                before()
                begin = time.perf_counter()
                call()
                row[i] = time.perf_counter() - begin
    return ratio(times[:, 1], times[:, 0]).median


@contextmanager
def neighbour() -> Iterator[None]:
    """Another process that burns the first core that we may use."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--seconds", type=float, default=2.0, help="per shape and case")
    options = parser.parse_args()
    has_torch = importlib.util.find_spec("torch") is not None
    print(header(describe()), end="\n\n")
    print(f"{'automatic / serial':20}{'serial':>9}" + "".join(f"{name:>12}" for name in GOALS))
    print(f"{'goal':29}" + "".join(f"{goal:12.2f}" for goal in GOALS.values()))
    for shape in parse(options.shapes):
        logits, targets = make(shape.n_rows, shape.n_classes)
        auto = partial(fastce.cross_entropy_with_grad, logits, targets, out=touched(logits))
        serial = partial(auto, n_threads=1)
        hot, seconds = back_to_back(serial, auto, options.seconds)
        found = [hot, after_idle(serial, auto)]
        found.append(with_torch(serial, auto) if has_torch else np.nan)
        with neighbour():
            found.append(back_to_back(serial, auto, options.seconds)[0])
        cells = "".join(f"{value:12.2f}" for value in found)
        print(f"{shape.size:20}{time_text(seconds):>9}{cells}", flush=True)


if __name__ == "__main__":
    main()
