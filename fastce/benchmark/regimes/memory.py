"""How much memory do loss and gradient need at the peak, beside the logits?

Each implementation runs in a process of its own, warmed with the same shape. The peak is the
kernel's own count (VmHWM, reset before the call), so this needs Linux.
"""

import gc
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fastce
from fastce.benchmark.peers import PEERS, Call
from fastce.benchmark.regimes.child import run
from fastce.benchmark.regimes.figure import Figure
from fastce.benchmark.shapes import make, parse, touched

SHAPES = "2048x32000,131072x500"
IN_PLACE, ALLOCATING = "in place", "alloc"
GOALS = {ALLOCATING: 1.03, IN_PLACE: 0.03}


def status(field: str) -> int:
    """A size of this process in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert match is not None, field
    return int(match[1]) * 1024


def child(name: str, size: str) -> int:
    """The extra peak of one call, in bytes."""
    (shape,) = parse(size)
    logits, targets = make(shape.n_rows, shape.n_classes)
    grad = logits[:0]
    if name == IN_PLACE:
        call: Call = partial(fastce.cross_entropy_with_grad, logits, targets, out=logits)
    else:
        if name == "sklearn":  # cannot do without a buffer, which counts as well
            grad = touched(logits)
        peer = next(peer for peer in PEERS if peer.name == name)
        call = peer.adapter(logits, targets, grad, peer.reduction("mean"))
    call()
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    result = call()
    peak = status("VmHWM")
    del result
    return peak - before + grad.nbytes


def figures(seconds: float) -> Iterator[Figure | str]:
    if sys.platform != "linux":
        yield "needs Linux"
        return
    # torch.compile is left out: it takes a minute to start
    peers = [peer.name for peer in PEERS if peer.installed and peer.name != "compile"]
    for shape in parse(SHAPES):
        for name in (IN_PLACE, *peers):
            case = f"{shape.size}, {'allocating' if name == ALLOCATING else name}"
            try:
                peak = int(run(__name__, name, shape.size))
            except ChildProcessError as error:  # too little memory for one may be enough for others
                yield f"{case}: {error}"
                continue
            extra = peak / (4 * shape.n_rows * shape.n_classes)
            yield Figure(case, extra, "of the bytes of the logits", at_most=GOALS.get(name))
