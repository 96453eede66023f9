"""One row of the table: a shape's results are checked, then timed. Nothing is printed here."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastce
from fastce._kernel import stream_copy, stream_read
from fastce.benchmark.exact import Errors, Exact, errors, reference
from fastce.benchmark.machine import last_level_cache
from fastce.benchmark.peers import OURS, Peer, as_numpy
from fastce.benchmark.shapes import Shape, make, touched
from fastce.benchmark.timing import Call, ratio, take_turns

Array = NDArray[Any]

# The contract on accuracy: worst ulps of loss and of gradient.
CONTRACT = {"float32": (2.0, 4.0), "float64": (4.0, 8.0)}
# From memory: every buffer in the rotation is evicted before its next turn, also by a cache that
# keeps an eighth of a stream. At most 1 GB, and in any case one pair of logits and gradient.
ROTATION_CACHES = 8
ROTATION_BYTES = 2**30


class Mismatch(Exception):
    """An implementation's result is not the reference's."""


def n_buffers(n_bytes: int) -> int:
    """How many pairs of logits and gradient, `n_bytes` each, to rotate; 1 if one stays in cache."""
    cache = last_level_cache()
    if n_bytes < cache / 2:
        return 1
    return max(1, min(-(-ROTATION_CACHES * cache // n_bytes), ROTATION_BYTES // n_bytes))


def check(peer: Peer, logits: Array, targets: Array, grad: Array, exact: Exact) -> Errors:
    """Errors of losses per row and their gradient; Mismatch if those or the mean's are wrong."""
    found = {}
    for wanted in ("none", "mean"):
        reduction = peer.reduction(wanted)
        if reduction not in found:
            grad.fill(np.nan)  # a gradient that nobody writes is no result
            loss, gradient = as_numpy(peer.adapter(logits, targets, grad, reduction)())
            if gradient.shape != logits.shape or gradient.dtype != logits.dtype:
                raise Mismatch(
                    f"{peer.name}: the gradient is {gradient.shape} {gradient.dtype}, "
                    f"expected {logits.shape} {logits.dtype}"
                )
            found[reduction] = errors(loss, gradient, exact, mean=reduction == "mean")
            _judge(peer, found[reduction], logits, reduction)
    return found["none"]


def _judge(peer: Peer, found: Errors, logits: Array, reduction: str) -> None:
    n_rows, n_classes = logits.shape
    what = f"{peer.name}, {n_rows}x{n_classes} {logits.dtype}, reduction {reduction!r}"
    if peer is OURS:
        loss_bound, grad_bound = CONTRACT[logits.dtype.name]
        if not (found.loss_ulps <= loss_bound and found.grad_ulps <= grad_bound):
            raise Mismatch(
                f"{what}: loss off by {found.loss_ulps:.3g} ulp, gradient by {found.grad_ulps:.3g},"
                f" expected {loss_bound:g} and {grad_bound:g} or less"
            )
        return
    # A plain sum of n terms may lose n eps; exponents near -100 turn x - max's rounding into 100
    # eps.
    eps = float(np.finfo(logits.dtype).eps)
    loss_bound, grad_bound = (n_rows + n_classes + 100) * eps, (n_classes + 100) * eps
    if not (found.loss_error <= loss_bound and found.grad_error <= grad_bound):
        raise Mismatch(
            f"{what}: loss off by {found.loss_error:.3g}, gradient by {found.grad_error:.3g}, "
            f"expected {loss_bound:.3g} and {grad_bound:.3g} or less"
        )


def measure(shape: Shape, dtype: str, peers: Iterable[Peer], seconds: float) -> dict[str, Any]:
    """
    A row: times in seconds per call, ratios as (median, lower, upper quartile), errors in ulps.

    `seconds` is the most that is spent for each implementation, as in take_turns(). A peer that
    raises is left out, and `skipped` says why; one whose result is wrong raises Mismatch, as ours
    does.
    """
    logits, targets = make(shape.n_rows, shape.n_classes, np.dtype(dtype))
    grad = touched(logits)
    exact = reference(logits, targets)
    found, skipped = {OURS.name: check(OURS, logits, targets, grad, exact)}, {}
    working = [OURS]
    for peer in peers:
        try:
            found[peer.name] = check(peer, logits, targets, grad, exact)
            working.append(peer)
        except Mismatch:
            raise
        except Exception as error:  # whatever a peer raises is no reason to lose the table
            skipped[peer.name] = (
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            )
    del exact

    n_bytes = logits.nbytes + grad.nbytes
    pairs = [(logits, grad)]
    pairs += [(logits.copy(), touched(logits)) for _ in range(n_buffers(n_bytes) - 1)]
    n_threads = fastce.get_num_threads()
    participants: dict[str, list[Call]] = {
        peer.name: [peer.adapter(x, targets, g, peer.reduction("mean")) for x, g in pairs]
        for peer in working
    }
    participants["copy"] = [partial(stream_copy, x, g, n_threads) for x, g in pairs]
    participants["loss alone"] = [partial(fastce.cross_entropy, x, targets) for x, _ in pairs]
    participants["read"] = [partial(stream_read, x, n_threads) for x, _ in pairs]
    times = take_turns(participants, seconds * len(participants))

    mine = times[OURS.name]
    return {
        "use": shape.use,
        "shape": [shape.n_rows, shape.n_classes],
        "dtype": dtype,
        "from": "memory" if n_bytes >= last_level_cache() / 2 else "cache",
        "buffers": len(pairs),
        "rounds": len(mine),
        "seconds": float(np.median(mine)),
        "seconds_min": float(mine.min()),
        "gb_per_s": n_bytes / float(np.median(mine)) / 1e9,
        "share_of_copy": ratio(times["copy"], mine)._asdict(),
        "copy_gb_per_s": n_bytes / float(np.median(times["copy"])) / 1e9,
        "loss_seconds": float(np.median(times["loss alone"])),
        "loss_over_read": ratio(times["loss alone"], times["read"])._asdict(),
        "ulps": _ulps(found[OURS.name]),
        "peers": {
            peer.name: {
                "seconds": float(np.median(times[peer.name])),
                "seconds_min": float(times[peer.name].min()),
                "ratio": ratio(times[peer.name], mine)._asdict(),
                "ulps": _ulps(found[peer.name]),
            }
            for peer in working[1:]
        },
        "skipped": skipped,
    }


def _ulps(found: Errors) -> dict[str, float]:
    return {"loss": found.loss_ulps, "grad": found.grad_ulps}
