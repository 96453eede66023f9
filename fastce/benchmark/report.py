"""How the rows of the tables look: as text, as JSON and as a plot. Nothing is measured here."""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fastce.benchmark.regimes import Figure

LEGEND = """\
ours      median time of cross_entropy_with_grad, mean over the rows, into an existing buffer
GB/s      logits read and gradient written, by ours
copy      time of a streaming (non-temporal) copy of the logits / time of ours: 1 is the speed of
          memory; the copy always writes to memory, so a shape in cache may exceed it
loss/rd   time of the loss alone / time of a streaming read of the logits
ulp l/g   worst error of ours, of a row's loss and of a gradient's element
the rest  time of the peer / time of ours, median over the turns"""


def header(machine: dict[str, Any]) -> str:
    """The machine in a few lines, for people."""
    config = machine["fastce"]
    isa, threading = config["isa"], config["threading"]
    usable = machine["cores_usable"] or machine["cores"]
    versions = " ".join(f"{name} {version}" for name, version in machine["versions"].items())
    load = machine["load"] or 0.0
    lines = [
        f"{machine['cpu']}, {usable} of {machine['cores']} cores, "
        f"last-level cache {machine['last_level_cache'] / 2**20:g} MiB, {machine['system']}",
        f"fastce {config['version']}, {config['compiler']}, "
        f"{isa['used']} of {' '.join(isa['found'])}, "
        f"{threading['backend']} with {machine['n_threads']} threads",
        f"{versions}; BLAS (not used here): {machine['blas'] or 'unknown'}",
        f"load {load:.2f}{' (busy: expect noise)' if load > 0.5 else ''}, {machine['date']}",
    ]
    return "\n".join(lines)


def time_text(seconds: float) -> str:
    """Three digits with a unit: `2.31 us`."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def table_head(peers: Sequence[str]) -> str:
    fixed = f"{'shape':21}{'from':7}{'ours':>8}{'GB/s':>7}{'copy':>6}{'loss/rd':>8}{'ulp l/g':>10}"
    return fixed + "".join(f"{name:>{_width(name)}}" for name in peers)


def table_row(row: dict[str, Any], peers: Sequence[str]) -> str:
    n_rows, n_classes = row["shape"]
    ulps = f"{row['ulps']['loss']:.1f}/{row['ulps']['grad']:.1f}"
    text = (
        f"{row['use'] + f' {n_rows}x{n_classes}':21}{row['from']:7}{time_text(row['seconds']):>8}"
        f"{row['gb_per_s']:7.1f}{row['share_of_copy']['median']:6.2f}"
        f"{row['loss_over_read']['median']:8.2f}{ulps:>10}"
    )
    for name in peers:
        peer = row["peers"].get(name)
        cell = f"{peer['ratio']['median']:.1f}" if peer else "-"
        text += f"{cell:>{_width(name)}}"
    return text


def _width(name: str) -> int:
    return max(len(name), 5) + 2


def figure_head() -> str:
    return f"{'regime':13}{'case':46}{'ours':>9}{'ratio':>8}  {'of':32}goal"


def figure_row(regime: str, figure: Figure | str) -> str:
    if isinstance(figure, str):
        return f"{regime:13}{figure}"
    ours = "" if figure.seconds is None else time_text(figure.seconds)
    goal = figure.goal + (" missed" if figure.is_missed else "")
    text = f"{regime:13}{figure.case:46}{ours:>9}{figure.ratio:8.2f}  {figure.of:32}{goal}"
    return text.rstrip()


def write_json(path: Path, found: dict[str, Any]) -> None:
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    try:
        path.write_text(text)
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_plot(path: Path, machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Two panels: how many times longer each peer takes, and ours as a share of the copy."""
    ticker: Any = import_module("matplotlib.ticker")
    names = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    labels = [f"{row['use']} {row['shape'][0]}x{row['shape'][1]}" for row in rows]
    figure: Any = import_module("matplotlib.figure").Figure(
        figsize=(10, 1.6 + 0.55 * len(rows)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    for name in names:
        points = [(r["peers"][name]["ratio"], i) for i, r in enumerate(rows) if name in r["peers"]]
        left.errorbar(
            [ratio["median"] for ratio, _ in points],
            [i for _, i in points],
            xerr=[
                [ratio["median"] - ratio["low"] for ratio, _ in points],
                [ratio["high"] - ratio["median"] for ratio, _ in points],
            ],
            fmt="o",
            label=name,
        )
    left.axvline(1, color="black", linewidth=1)
    left.set(xscale="log", xlabel="time of the peer / time of fastce (bars: quartiles)")
    low, high = left.get_xlim()
    subs = (1, 2, 5) if high / low < 300 else (1,)  # more labels than that overlap
    left.xaxis.set_major_locator(ticker.LogLocator(subs=subs))
    left.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    left.xaxis.set_minor_formatter(ticker.NullFormatter())
    left.set_yticks(range(len(rows)), labels)
    left.invert_yaxis()
    left.grid(axis="x", alpha=0.3, which="both")
    if names:
        figure.legend(loc="outside lower center", ncols=len(names), fontsize="small")
    right.barh(range(len(rows)), [row["share_of_copy"]["median"] for row in rows], color="0.6")
    right.axvline(1, color="black", linewidth=1)
    right.set(xlabel="share of a streaming copy")
    figure.suptitle(
        f"softmax cross-entropy with gradient, {rows[0]['dtype']}, {machine['n_threads']} threads, "
        f"{machine['cpu']}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def write_scaling_plot(path: Path, machine: dict[str, Any], found: Sequence[Figure]) -> None:
    """Seconds over rows x classes, a line for each number of classes and of threads."""
    lines: dict[int, list[tuple[int, float, float]]] = {}
    for figure in found:
        assert figure.shape is not None
        assert figure.seconds is not None
        n_rows, n_classes = figure.shape
        times = figure.seconds, figure.seconds / figure.ratio
        lines.setdefault(n_classes, []).append((n_rows * n_classes, *times))
    n_threads = machine["n_threads"]
    plot: Any = import_module("matplotlib.figure").Figure(figsize=(7, 5), layout="constrained")
    axes = plot.subplots()
    for i, (n_classes, points) in enumerate(lines.items()):
        elements, one_thread, all_threads = zip(*points, strict=True)
        axes.loglog(elements, one_thread, f"C{i}o-", label=f"{n_classes} classes, 1 thread")
        if n_threads > 1:
            label = f"{n_classes} classes, {n_threads} threads"
            axes.loglog(elements, all_threads, f"C{i}^--", label=label)
    axes.set(xlabel="rows x classes", ylabel="seconds")
    axes.set_title(f"loss and gradient, float32, {machine['cpu']}", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    plot.savefig(path, dpi=120)
