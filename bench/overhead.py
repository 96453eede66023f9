"""What does a call cost that has next to nothing to compute?

Loss and gradient of 1x10, 64x10 and 256x10 against np.exp over the same array, one thread of work:
both allocating their result, and both writing to a buffer. The goal is 3 x np.exp or less.
"""

import argparse

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, touched
from fastce.benchmark.timing import ratio, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="per size")
    seconds = parser.parse_args().seconds
    print(header(describe()), end="\n\n")
    print(f"{'':8}{'allocating':^27}  {'into a buffer':^27}")
    print(f"{'size':8}" + f"{'fastce':>9}{'np.exp':>9}{'ratio':>7}    " * 2)
    for n_rows in (1, 64, 256):
        logits, targets = make(n_rows, 10)
        grad = touched(logits)
        # Each call as it stands in a user's code.  A partial with keywords would make a dict of
        # them for each call, 0.1 us that no user pays.
        calls = {
            "exp": lambda x=logits: np.exp(x),
            "ours": lambda x=logits, y=targets: fastce.cross_entropy_with_grad(x, y),
            "exp out": lambda x=logits, g=grad: np.exp(x, out=g),
            "ours out": lambda x=logits, y=targets, g=grad: fastce.cross_entropy_with_grad(
                x, y, out=g
            ),
        }
        times = take_turns({name: [call] for name, call in calls.items()}, seconds)
        cells = f"{n_rows}x10".ljust(8)
        for ours, exp in (("ours", "exp"), ("ours out", "exp out")):
            a, b = times[ours], times[exp]
            cells += f"{time_text(np.median(a)):>9}{time_text(np.median(b)):>9}"
            cells += f"{ratio(a, b).median:7.2f}    "
        print(cells.rstrip(), flush=True)


if __name__ == "__main__":
    main()
