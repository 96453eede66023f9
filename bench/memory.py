"""How much memory do loss and gradient need at the peak, in units of the logits?

Each implementation runs in a process of its own, warmed with the same shape. The peak is the
kernel's own count (VmHWM, reset before the call), so this needs Linux. The goals: 1.03 (the
gradient), 0.03 in place.
"""

import argparse
import gc
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.peers import PEERS, Call
from fastce.benchmark.report import header
from fastce.benchmark.shapes import make, parse, touched

IN_PLACE = "in place"
# "alloc" is ours without a buffer; torch.compile is left out, since it takes a minute to start.
NAMES = ("alloc", IN_PLACE, *(p.name for p in PEERS if p.name not in ("alloc", "compile")))


def status(field: str) -> int:
    """A size of this process in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert match is not None, field
    return int(match[1]) * 1024


def child(name: str, n_rows: int, n_classes: int) -> None:
    """Print the extra peak of one call, in bytes."""
    logits, targets = make(n_rows, n_classes)
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
    print(status("VmHWM") - before + grad.nbytes)
    del result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="2048x32000,131072x500")
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shapes = parse(options.shapes)
    if options.child:
        child(options.child, shapes[0].n_rows, shapes[0].n_classes)
        return
    print(header(describe()), end="\n\n")
    installed = {IN_PLACE, *(peer.name for peer in PEERS if peer.installed)}
    names = [name for name in NAMES if name in installed]
    print(f"{'extra / logits':16}" + "".join(f"{name:>11}" for name in names))
    for shape in shapes:
        n_bytes = 4 * shape.n_rows * shape.n_classes
        cells = ""
        for name in names:
            done = subprocess.run(
                [sys.executable, __file__, "--child", name, "--shapes", shape.size],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            cells += f"{int(done.stdout) / n_bytes:11.2f}"
        print(f"{shape.size:16}{cells}", flush=True)


if __name__ == "__main__":
    main()
