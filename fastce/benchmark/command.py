"""`fastce bench`: its command line, order of work and exit status. Nothing is measured here.

Exit status: 0 done, also where a goal is missed, 1 a result is wrong (nothing after it is timed),
2 bad usage, one line on stderr.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import fastce
from fastce.benchmark import report
from fastce.benchmark.machine import describe
from fastce.benchmark.measure import CONTRACT, Mismatch, measure
from fastce.benchmark.peers import PEERS, Peer
from fastce.benchmark.regimes import REGIMES, Figure
from fastce.benchmark.shapes import NAMED, QUICK, Shape, parse

SECONDS = 1.0  # about 25 turns of 20 ms, with their pauses
QUICK_SECONDS = 0.2


class UsageError(Exception):
    """One line for stderr; exit status 2."""


class Parser(argparse.ArgumentParser):
    """argparse prints the whole usage above each error; one line that names the flag is enough."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastce bench` with these arguments; returns the exit status."""
    try:
        options = _parse(argv)
        if options.list:
            _print_list()
            return 0
        peers, skipped = ([], {}) if options.regimes else _load(options.peers)
    except UsageError as error:
        print("fastce bench:", *str(error).split(), file=sys.stderr)  # one line, whatever was typed
        return 2
    try:
        with fastce.threads(options.threads):
            if options.regimes:
                _run_regimes(options)
            else:
                _run(options, peers, skipped)
    except Mismatch as error:
        print(f"fastce bench: wrong result: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="fastce bench",
        description="Check loss and gradient against a wider reference, then time fastce beside "
        "other libraries, which take turns in this process.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--shapes",
        help="uses or sizes, e.g. mnist,8192x1000,100x7 (default: all that --list names)",
    )
    parser.add_argument("--peers", help="e.g. numpy,torch, or none (default: every one installed)")
    parser.add_argument("--threads", type=int, default=fastce.get_num_threads(), metavar="N")
    parser.add_argument("--dtype", choices=list(CONTRACT), default="float32")
    parser.add_argument(
        "--seconds",
        type=float,
        help="at most, per implementation and shape, but at least five turns; a shape ends when "
        f"its ratios are known to a hundredth (default: {SECONDS}); the regimes threads, memory "
        "and isa take longer",
    )
    parser.add_argument(
        "--regimes",
        metavar="NAMES",
        help="instead of the table, and without checks of results, how near fastce comes to what "
        f"limits it, five minutes for all: all, or some of {','.join(REGIMES)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="of the table, or of the regime scaling; needs matplotlib",
    )
    parser.add_argument(
        "--list", action="store_true", help="name shapes, peers and regimes, and stop"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"the smaller shapes, {QUICK_SECONDS} seconds each"
    )
    options = parser.parse_args(argv)
    if options.seconds is None:
        options.seconds = QUICK_SECONDS if options.quick else SECONDS
    if not 0 < options.seconds <= 3600:
        raise UsageError(
            f"argument --seconds: expected more than 0, 3600 at most, got {options.seconds}"
        )
    if not 1 <= options.threads <= 1024:
        raise UsageError(f"argument --threads: expected 1 to 1024, got {options.threads}")
    options.regimes = _regimes(options)
    options.shapes = _shapes(options)
    options.peers = _peers(options.peers)
    for flag in ("json", "plot"):
        path = getattr(options, flag)
        if path is None:
            continue
        there = path if path.exists() else path.parent
        if path.is_dir() or not path.parent.is_dir() or not os.access(there, os.W_OK):
            raise UsageError(f"argument --{flag}: cannot write {path}")
    if options.plot is not None and options.plot.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"argument --plot: expected .png, .pdf or .svg, got {options.plot}")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("argument --plot: needs matplotlib, which is not installed")
    return options


def _regimes(options: argparse.Namespace) -> list[str]:
    if options.regimes is None:
        return []
    if options.shapes or options.peers or options.quick or options.dtype != "float32":
        raise UsageError(
            "argument --regimes: they have shapes, peers and dtypes of their own, expected no "
            "--shapes, --peers, --dtype, --quick"
        )
    names = list(REGIMES) if options.regimes == "all" else options.regimes.split(",")
    for name in names:
        if name not in REGIMES:
            raise UsageError(
                f"argument --regimes: expected all, or some of {','.join(REGIMES)}, got {name!r}"
            )
    if options.plot is not None and "scaling" not in names:
        raise UsageError("argument --plot: of the regimes, only scaling has a plot")
    return list(dict.fromkeys(names))


def _shapes(options: argparse.Namespace) -> list[Shape]:
    if options.shapes is None:
        return list(QUICK if options.quick else NAMED)
    try:
        return parse(options.shapes)
    except ValueError as error:
        raise UsageError(f"argument --shapes: {error}") from None


def _peers(names: str | None) -> list[Peer] | None:
    if names is None:
        return None
    known = {peer.name: peer for peer in PEERS}
    chosen = [] if names == "none" else names.split(",")
    for name in chosen:
        if name not in known:
            raise UsageError(
                f"argument --peers: expected none, or some of {','.join(known)}, got {names!r}"
            )
        if not known[name].installed:
            raise UsageError(
                f"argument --peers: {name} needs {known[name].module}, which is not installed"
            )
    return [known[name] for name in dict.fromkeys(chosen)]


def _load(chosen: list[Peer] | None) -> tuple[list[Peer], dict[str, str]]:
    """The peers that import, and why the others don't; UsageError if one was asked for by name."""
    loaded, skipped = [], {}
    for peer in PEERS if chosen is None else chosen:
        try:
            peer.load()
            loaded.append(peer)
        except Exception as error:  # an installation may be broken in any way
            if chosen is not None:
                raise UsageError(
                    f"argument --peers: {peer.name} does not import: {error!r}"
                ) from None
            skipped[peer.name] = "not installed" if not peer.installed else repr(error)
    return loaded, skipped


def _run(options: argparse.Namespace, peers: list[Peer], skipped: dict[str, str]) -> None:
    machine = describe(peer.load() for peer in peers)
    names = [peer.name for peer in peers]
    print(report.header(machine), report.LEGEND, sep="\n\n", end="\n\n")
    for peer in peers:
        print(f"{peer.name:12}{peer.note}")
    for name, reason in skipped.items():
        print(f"{name:12}skipped: {reason}")
    print(f"\n{report.table_head(names)}", flush=True)
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        row = measure(shape, options.dtype, peers, options.seconds)
        rows.append(row)
        print(report.table_row(row, names), flush=True)
        for name, reason in row["skipped"].items():
            print(f"  {name} skipped: {reason}")
    if options.json is not None:
        report.write_json(options.json, {"machine": machine, "rows": rows})
    if options.plot is not None:
        report.write_plot(options.plot, machine, rows)


def _run_regimes(options: argparse.Namespace) -> None:
    machine = describe()
    print(report.header(machine), report.figure_head(), sep="\n\n", flush=True)
    found: dict[str, list[Figure]] = {}
    for name in options.regimes:
        figures = found[name] = []
        for figure in REGIMES[name](options.seconds):
            if isinstance(figure, Figure):
                figures.append(figure)
            print(report.figure_row(name, figure), flush=True)
    goals = [figure for figures in found.values() for figure in figures if figure.goal]
    n_missed = sum(figure.is_missed for figure in goals)
    print(f"\n{n_missed} of {len(goals)} goals missed; they are for two threads and AVX-512")
    if options.json is not None:
        rows = {name: [figure._asdict() for figure in figures] for name, figures in found.items()}
        report.write_json(options.json, {"machine": machine, "regimes": rows})
    if options.plot is not None:
        report.write_scaling_plot(options.plot, machine, found["scaling"])


def _print_list() -> None:
    print("shapes")
    for shape in NAMED:
        print(f"  {shape.use:10}{shape.size}")
    print("peers")
    for peer in PEERS:
        print(f"  {peer.name:12}{'installed' if peer.installed else 'not installed':15}{peer.note}")
    print("regimes")
    for name, figures in REGIMES.items():
        doc = sys.modules[figures.__module__].__doc__ or ""
        print(f"  {name:12}{doc.splitlines()[0]}")
