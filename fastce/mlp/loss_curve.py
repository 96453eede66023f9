"""Draws the loss curve of a training run. The only file that knows matplotlib, an extra."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .files import replacing


def save_loss_curve(
    path: str | os.PathLike[str], losses: Sequence[float], test_losses: Sequence[float]
) -> bool:
    """Write a PNG of the loss after each epoch; False, and no file, without matplotlib."""
    try:
        # Not pyplot, which would choose a backend for the whole process.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    epochs = range(1, len(losses) + 1)
    axes.plot(epochs, losses, marker=".", label="training")
    axes.plot(epochs, test_losses, marker=".", label="test")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    with replacing(path) as file:
        # No "Software" entry: the same losses give the same bytes.
        FigureCanvasAgg(figure)  # Figure.savefig then draws with it
        figure.savefig(file, format="png", metadata={"Software": None})
    return True
