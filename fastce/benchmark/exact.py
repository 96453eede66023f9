"""The reference, one precision wider than what it checks, and errors in ulps. No peers, no timing.

float32 logits are checked in float64: its own error, 2**-53 times the largest exponent's argument,
is below 1e-5 ulp of float32 there, and it is 50 times faster than longdouble. float64 logits need
longdouble.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BLOCK = 2**17  # elements at a time: the half dozen temporaries stay in L2 and L3


class Exact(NamedTuple):
    """Per-row losses and the gradient of their sum; divide both for the mean."""

    losses: Array
    grad: Array


class Errors(NamedTuple):
    """Of the worst element: in ulps, and relative to the scale (1 + loss; 1 for a gradient)."""

    loss_ulps: float
    grad_ulps: float
    loss_error: float
    grad_error: float


def _blocks(array: Array) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, array[0].size)) if len(array) else 1
    return (slice(i, i + step) for i in range(0, len(array), step))


def reference(logits: Array, targets: NDArray[np.integer[Any]]) -> Exact:
    """
    Loss `(max - x_y) + log1p(rest)`, and the label's gradient as minus the sum of the others.

    `rest` sums every exponential but the maximum's, which is 1: a confident row keeps its small
    loss.
    """
    wide = np.float64 if logits.dtype.itemsize <= 4 else np.longdouble
    exact = Exact(np.empty(len(logits), wide), np.empty(logits.shape, wide))
    with np.errstate(invalid="ignore"):  # a row of -inf is NaN by definition
        for rows in _blocks(logits):
            _reference_block(logits[rows].astype(wide), targets[rows], exact, rows)
    return exact


def _reference_block(z: Array, targets: Array, exact: Exact, rows: slice) -> None:
    each = np.arange(len(z))
    top = z.argmax(axis=1)
    z_top = z[each, top]
    p = np.exp(z - z_top[:, None])
    p[each, top] = 0.0
    rest = p.sum(axis=1)
    exact.losses[rows] = (z_top - z[each, targets]) + np.log1p(rest)
    p[each, top] = 1.0
    p /= (1.0 + rest)[:, None]
    p[each, targets] = 0.0
    p[each, targets] = -p.sum(axis=1)
    exact.grad[rows] = p


def worst_ulps(value: Array, exact: Array) -> float:
    """
    The largest error in units of the last place that `value`'s dtype has at the exact result.

    Both infinite alike or both NaN: no error. One of them NaN or infinite: an infinite error.
    """
    worst = 0.0
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for rows in _blocks(value):
            a, b = value[rows], exact[rows]
            ulp = np.spacing(np.abs(b).astype(value.dtype))
            error = np.abs(a - b) / ulp
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
            worst = max(worst, float(error.max(initial=0.0)))
    return worst


def errors(loss: Array, grad: Array, exact: Exact, mean: bool) -> Errors:
    """Errors of a mean loss and its gradient, or of losses per row and their sum's gradient."""
    losses, n = exact.losses, 1
    if mean:
        n = len(losses)
        losses = losses.mean(keepdims=True)
    loss = np.atleast_1d(loss)
    grad_ulps, grad_error = 0.0, np.float64(0)
    for rows in _blocks(grad):
        block = exact.grad[rows] / n
        grad_ulps = max(grad_ulps, worst_ulps(grad[rows], block))
        # np.maximum keeps a NaN, which max() drops.
        grad_error = np.maximum(grad_error, np.abs(grad[rows] - block).max(initial=0.0) * n)
    loss_error = float((np.abs(loss - losses) / (1 + np.abs(losses))).max(initial=0.0))
    return Errors(worst_ulps(loss, losses), grad_ulps, loss_error, float(grad_error))
