"""Does the automatic choice of threads ever make a call slower than n_threads=1?

Called back to back; the first call after 20 ms of idleness; in turns with a PyTorch op on its own
OpenMP threads; and with another process burning one core.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import numpy as np

import fastce
from fastce.benchmark.regimes.child import COMMAND
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import Call, ratio, take_turns

SHAPES = "64x10,1024x10,4096x10,60000x10,256x1000,8192x1000,512x32000"
IDLE_SECONDS = 0.020  # libgomp's workers have given up spinning after 7
REPEATS = 41  # of a first call after idleness: 2 x 41 x 20 ms


def back_to_back(serial: Call, auto: Call, seconds: float) -> tuple[float, float]:
    """The ratio, and the automatic call's median seconds."""
    times = take_turns({"serial": [serial], "auto": [auto]}, 2 * seconds)
    return ratio(times["auto"], times["serial"]).median, float(np.median(times["auto"]))


def first_calls(serial: Call, auto: Call, before: Callable[[], object]) -> float:
    """The ratio of calls that are timed alone, each after something else."""
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


def torch_op() -> Callable[[], object]:
    """An elementwise op of 0.2 ms on as many threads as ours."""
    torch = import_module("torch")
    torch.set_num_threads(fastce.get_num_threads())
    tensor = torch.ones(2**20)
    return lambda: tensor.mul_(1.0)


# It ends with its parent, however that ends.
BURN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    sum(range(100_000))
"""


@contextmanager
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that burns the first core that we may use."""
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        [*COMMAND, BURN, str(os.getpid())], stdin=nowhere, stdout=nowhere, stderr=nowhere
    )
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        yield process
    finally:
        process.kill()
        process.wait()


def figures(seconds: float) -> Iterator[Figure | str]:
    if fastce.get_num_threads() == 1:
        yield "one thread: there is nothing to choose"
        return
    op = torch_op() if find_spec("torch") is not None else None
    if op is None:
        yield "PyTorch is not installed"
    of = "times one thread"
    for shape in parse(SHAPES):
        logits, targets = make(shape.n_rows, shape.n_classes)
        auto = partial(fastce.cross_entropy_with_grad, logits, targets, out=touched(logits))
        serial = partial(auto, n_threads=1)
        hot, ours = back_to_back(serial, auto, seconds)
        yield Figure(f"{shape.size}, back to back", hot, of, ours, at_most=1.10)
        idle = first_calls(serial, auto, lambda: time.sleep(IDLE_SECONDS))
        yield Figure(f"{shape.size}, after 20 ms of idleness", idle, of, at_most=1.25)
        if op is not None:
            beside = first_calls(serial, auto, op)
            yield Figure(f"{shape.size}, in turns with PyTorch", beside, of, at_most=1.25)
        with neighbour():
            busy = back_to_back(serial, auto, seconds)[0]
        yield Figure(f"{shape.size}, beside a busy process", busy, of, at_most=1.30)
