"""What does each instruction set give? Baseline, AVX2 and AVX-512 side by side, one thread.

Each runs in a process of its own with FASTCE_ISA set; the processes take turns. The goal: the
baseline, which has no fused multiply-add, within 6 x of AVX-512.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import one_turn

ISAS = ("avx512", "avx2", "baseline")
SHAPES = "64x10,4096x10,4096x32,256x1000,1024x32000"


def child(shapes: str) -> None:
    """Time the shapes with the instruction set that the environment names."""
    seconds = []
    for shape in parse(shapes):
        logits, targets = make(shape.n_rows, shape.n_classes)
        grad = touched(logits)
        call = partial(fastce.cross_entropy_with_grad, logits, targets, out=grad, n_threads=1)
        seconds.append(np.median([one_turn([call]) for _ in range(5)]))
    print(json.dumps(seconds))


def run(isa: str, shapes: str) -> list[float] | None:
    """Seconds per shape; None, and a line that says why, where this CPU lacks the instructions."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", "--shapes", shapes],
        env=os.environ | {"FASTCE_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(f"{isa}: {done.stderr.strip().splitlines()[-1]}")
        return None
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = parse(options.shapes)
    if options.child:
        child(options.shapes)
        return
    print(header(describe()), end="\n\n")
    first = {isa: run(isa, options.shapes) for isa in ISAS}
    rounds = {isa: [seconds] for isa, seconds in first.items() if seconds is not None}
    for _ in range(options.rounds - 1):
        for isa, found in rounds.items():
            seconds = run(isa, options.shapes)
            assert seconds is not None  # it ran before
            found.append(seconds)
    times = {isa: np.array(found) for isa, found in rounds.items()}
    best = next(iter(times))
    print(f"{'shape':12}" + "".join(f"{isa:>11}" for isa in times) + f"   time / time of {best}")
    for i, shape in enumerate(shapes):
        cells = "".join(f"{time_text(float(np.median(t[:, i]))):>11}" for t in times.values())
        ratios = "".join(
            f"{float(np.median(t[:, i] / times[best][:, i])):8.2f}" for t in times.values()
        )
        print(f"{shape.size:12}{cells}  {ratios}")


if __name__ == "__main__":
    main()
