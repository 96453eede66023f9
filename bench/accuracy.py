"""How wrong is each library on the rows that hurt?

Worst errors in ulps of a row's loss and of a gradient's element, against the wider reference, ours
beside the others'; and a picture of the loss's relative error against how confident a row is.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastce.benchmark.exact import Exact, errors, reference
from fastce.benchmark.machine import describe
from fastce.benchmark.peers import OURS, PEERS, Peer, as_numpy
from fastce.benchmark.report import header
from fastce.benchmark.shapes import make, touched

Array = NDArray[Any]
COMPARED = ("numpy", "scipy", "torch", "jax", "sklearn", "tensorflow")


def confident(dtype: Any) -> tuple[Array, Array]:
    """The label leads by 0 to 100, in rows of 10: past 17 a float32 `1 + rest` is 1."""
    gaps = np.linspace(0, 100, 401)
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((len(gaps), 10)).clip(-2, 2)
    targets = rng.integers(0, 10, len(gaps))
    logits[np.arange(len(gaps)), targets] = 2 + gaps
    return logits.astype(dtype), targets


def wrong(dtype: Any) -> tuple[Array, Array]:
    """The same rows with another class as the label: large losses."""
    logits, targets = confident(dtype)
    return logits, (targets + 1) % 10


def offset(dtype: Any) -> tuple[Array, Array]:
    """Everything 1e4 higher: `logsumexp - x_y` cancels."""
    logits, targets = make(256, 100, dtype)
    return logits + logits.dtype.type(1e4), targets


def uniform(dtype: Any) -> tuple[Array, Array]:
    return np.full((16, 1000), 0.1, dtype), np.arange(16)


def tied(dtype: Any) -> tuple[Array, Array]:
    """Few values, so that several classes share the maximum."""
    rng = np.random.default_rng(2)
    return rng.integers(0, 4, (256, 100)).astype(dtype), rng.integers(0, 100, 256)


def ordered(dtype: Any) -> tuple[Array, Array]:
    """Sorted rows, up and down: each element or only the first is a new maximum."""
    logits, targets = make(256, 1000, dtype)
    logits.sort(axis=1)
    logits[::2] = logits[::2, ::-1].copy()
    return logits, targets


def masked(dtype: Any) -> tuple[Array, Array]:
    """Every third class at -inf, none of them a label."""
    logits, targets = make(256, 99, dtype)
    logits[:, 1::3] = -np.inf
    return logits, targets // 3 * 3


def vocabulary(dtype: Any) -> tuple[Array, Array]:
    return make(8, 128256, dtype)


CASES: dict[str, tuple[Callable[[Any], tuple[Array, Array]], Any]] = {
    "confident": (confident, np.float32),
    "confidently wrong": (wrong, np.float32),
    "offset 1e4": (offset, np.float32),
    "uniform": (uniform, np.float32),
    "tied": (tied, np.float32),
    "sorted": (ordered, np.float32),
    "masked by -inf": (masked, np.float32),
    "128256 classes": (vocabulary, np.float32),
    "confident float64": (confident, np.float64),
    "offset float64": (offset, np.float64),
    "sorted float64": (ordered, np.float64),
}


def ulps_text(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0e}".replace("e+0", "e")


def result(peer: Peer, logits: Array, targets: Array) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        return as_numpy(peer.adapter(logits, targets, touched(logits), "none")())


def plot(path: Path, peers: list[Peer]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    logits, targets = (a[::8] for a in confident(np.float32))  # enough points to see
    exact: Exact = reference(logits, targets)
    rest = np.where(np.arange(10) == targets[:, None], -np.inf, logits).max(axis=1)
    gaps = logits[np.arange(len(logits)), targets] - rest
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for peer, marker in zip(peers, "osx+v^d", strict=False):
        losses, _ = result(peer, logits, targets)
        error = np.abs(losses - exact.losses) / exact.losses
        # An error of exactly 0 has no place on a logarithmic axis: it is drawn at the bottom.
        axes.semilogy(
            gaps, error.clip(1e-10), marker, fillstyle="none", markersize=4, label=peer.name
        )
    axes.axhline(2.0**-24, color="black", linewidth=1)
    axes.text(40, 1e-7, "half an ulp")
    axes.axvline(126 * np.log(2), color="black", linewidth=1, linestyle=":")
    axes.text(86, 1e-5, "losses become\nsubnormal", ha="right")
    axes.text(40, 1.5, "the loss came out as 0")
    axes.set(
        xlabel="lead of the label's logit over the next, 10 classes",
        ylabel="relative error of the loss, float32",
        ylim=(5e-11, 10),
    )
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(0.25, 0.6))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastce"}):  # text, and the same again
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="png or svg; needs matplotlib")
    options = parser.parse_args()
    peers = [OURS, *(peer for peer in PEERS if peer.name in COMPARED and peer.installed)]
    print(header(describe(peer.load() for peer in peers)), end="\n\n")
    print(f"{'ulps: loss/grad':20}" + "".join(f"{peer.name:>14}" for peer in peers))
    for name, (rows, dtype) in CASES.items():
        logits, targets = rows(dtype)
        exact = reference(logits, targets)
        cells = ""
        for peer in peers:
            found = errors(*result(peer, logits, targets), exact, mean=False)
            cells += f"{ulps_text(found.loss_ulps) + '/' + ulps_text(found.grad_ulps):>14}"
        print(f"{name:20}{cells}", flush=True)
    if options.plot is not None:
        plot(options.plot, peers)


if __name__ == "__main__":
    main()
