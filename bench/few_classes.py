"""How near does one thread come to one exp per element, where rows are short?

Loss and gradient of 4096 rows against np.exp over the same array, both into buffers, n_threads=1.
The goals: 3.5 x np.exp for 2 classes, 2 x for 10 and 32.
"""

import argparse
from functools import partial

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, touched
from fastce.benchmark.timing import ratio, take_turns

GOALS = {2: 3.5, 10: 2.0, 32: 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--classes", type=int, nargs="+", default=list(GOALS))
    parser.add_argument("--seconds", type=float, default=3.0, help="per size")
    options = parser.parse_args()
    print(header(describe()), end="\n\n")
    print(f"{'size':10}{'fastce':>10}{'np.exp':>10}{'ratio':>7}{'goal':>6}{'ns/element':>12}")
    for n_classes in options.classes:
        logits, targets = make(options.rows, n_classes)
        grad = touched(logits)
        ours = partial(fastce.cross_entropy_with_grad, logits, targets, out=grad, n_threads=1)
        times = take_turns(
            {"exp": [partial(np.exp, logits, grad)], "ours": [ours]}, options.seconds
        )
        seconds, exp_seconds = np.median(times["ours"]), np.median(times["exp"])
        print(
            f"{f'{options.rows}x{n_classes}':10}{time_text(seconds):>10}{time_text(exp_seconds):>10}"
            f"{ratio(times['ours'], times['exp']).median:7.2f}{GOALS.get(n_classes, ''):>6}"
            f"{seconds / logits.size * 1e9:12.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
