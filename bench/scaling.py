"""Is the time linear in rows x classes, and what do two threads give?

Loss and gradient from a thousand to a hundred million elements, rows of 10, 1000 and 100,000
classes, one thread and all of them in turns. The goals: no bend but that of the caches, 1.8 x where
computing is the limit.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, touched
from fastce.benchmark.timing import ratio, take_turns

CLASSES = (10, 1000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-elements", type=float, default=1e8)
    parser.add_argument("--seconds", type=float, default=0.5, help="per size")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="needs matplotlib")
    options = parser.parse_args()
    n_threads = fastce.get_num_threads()
    print(header(describe()), end="\n\n")
    print(f"{'size':>16}{'1 thread':>10}{'ns/element':>12}{f'{n_threads} threads':>11}{'gain':>7}")
    points: dict[int, list[tuple[int, float, float]]] = {}
    for n_classes in CLASSES:
        for decade in np.arange(3, np.log10(options.max_elements) + 0.01, 0.5):
            n_rows = round(10**decade / n_classes)
            if n_rows == 0:
                continue
            logits, targets = make(n_rows, n_classes)
            auto = partial(fastce.cross_entropy_with_grad, logits, targets, out=touched(logits))
            times = take_turns(
                {"one": [partial(auto, n_threads=1)], "all": [auto]}, options.seconds
            )
            one, all_ = float(np.median(times["one"])), float(np.median(times["all"]))
            points.setdefault(n_classes, []).append((logits.size, one, all_))
            print(
                f"{f'{n_rows}x{n_classes}':>16}{time_text(one):>10}{one / logits.size * 1e9:12.3f}"
                f"{time_text(all_):>11}{ratio(times['one'], times['all']).median:7.2f}",
                flush=True,
            )
    if options.plot is not None:
        plot(options.plot, points, n_threads)


def plot(path: Path, points: dict[int, list[tuple[int, float, float]]], n_threads: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for i, (n_classes, rows) in enumerate(points.items()):
        elements, one, all_ = zip(*rows, strict=True)
        axes.loglog(elements, one, f"C{i}o-", label=f"{n_classes} classes, 1 thread")
        axes.loglog(elements, all_, f"C{i}^--", label=f"{n_classes} classes, {n_threads} threads")
    axes.set(xlabel="rows x classes", ylabel="seconds", title="loss and gradient, float32")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
