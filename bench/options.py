"""What do options, other losses and other layouts cost, beside the plain loss?

Loss and gradient of one array, in turns: the options and robust losses over plain cross-entropy (a
robust loss is a number per row: the goal is 1.10); channels first, as images of 21 classes have it,
over a streaming copy and PyTorch; and softmax, log_softmax and logsumexp beside scipy.special's.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastce
from fastce._kernel import stream_copy
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.shapes import make, parse, touched
from fastce.benchmark.timing import ratio, take_turns

SHAPES = "4096x10,256x1000,8192x1000,1024x32000"
IMAGES = (4, 21, 512, 512)


def variants(logits: Any, targets: Any) -> dict[str, Callable[..., object]]:
    n_rows, n_classes = logits.shape
    rng = np.random.default_rng(1)
    plain = partial(fastce.cross_entropy_with_grad, logits, targets)
    seen = rng.random(logits.shape) < 0.9
    seen[np.arange(n_rows), targets] = True  # a hidden target's loss is inf: nobody trains on that
    robust = (
        fastce.focal_loss_with_grad, fastce.generalized_cross_entropy_with_grad,
        fastce.symmetric_cross_entropy_with_grad, fastce.poly1_loss_with_grad,
    )  # fmt: skip
    return {
        "plain": plain,
        **{f.__name__.removesuffix("_with_grad"): partial(f, logits, targets) for f in robust},
        "class_weight": partial(plain, class_weight=rng.random(n_classes)),
        "sample_weight": partial(plain, sample_weight=rng.random(n_rows)),
        "ignored rows": partial(
            fastce.cross_entropy_with_grad,
            logits,
            np.where(rng.random(n_rows) < 0.1, -100, targets),
        ),
        "where": partial(plain, where=seen),
        "logit_scale": partial(plain, logit_scale=0.5),
        "label_smoothing": partial(plain, label_smoothing=0.1),
        "softcap": partial(plain, softcap=30.0),
        "z_loss": partial(plain, z_loss=1e-4),
    }


def torch_images(logits: Any, targets: Any) -> Callable[[], object] | None:
    if find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(fastce.get_num_threads())
    x, y = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets)

    def call() -> object:
        return torch.autograd.grad(torch.nn.functional.cross_entropy(x, y), x)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--seconds", type=float, default=5.0, help="per size")
    options = parser.parse_args()
    print(header(describe()), end="\n\n")
    for shape in parse(options.shapes):
        logits, targets = make(shape.n_rows, shape.n_classes)
        grad = touched(logits)
        calls = {n: [partial(f, out=grad)] for n, f in variants(logits, targets).items()}
        times = take_turns(calls, options.seconds)
        print(f"{shape.size}: plain {time_text(float(np.median(times['plain'])))}; times as long:")
        print("   ", ", ".join(f"{name} {ratio(times[name], times['plain']).median:.2f}"
                               for name in calls if name != "plain"), flush=True)  # fmt: skip

    rng = np.random.default_rng(0)
    logits = rng.standard_normal(IMAGES, dtype=np.float32)
    targets = rng.integers(0, IMAGES[1], (IMAGES[0], *IMAGES[2:]))
    grad = touched(logits)
    ours = partial(fastce.cross_entropy_with_grad, logits, targets, axis=1, out=grad)
    n_threads = fastce.get_num_threads()
    calls = {"ours": [ours], "copy": [partial(stream_copy, logits, grad, n_threads)]}
    peer = torch_images(logits, targets)
    if peer:
        calls["torch"] = [peer]
    times = take_turns(calls, options.seconds)
    print(f"{IMAGES}, axis=1: {time_text(float(np.median(times['ours'])))}; times as long:",
          ", ".join(f"{name} {ratio(times[name], times['ours']).median:.2f}"
                    for name in calls if name != "ours"))  # fmt: skip

    if find_spec("scipy") is None:
        return
    from scipy import special

    for shape in parse("4096x10,1024x1000"):
        logits, _ = make(shape.n_rows, shape.n_classes)
        for name in ("softmax", "log_softmax", "logsumexp"):
            calls = {
                "ours": [partial(getattr(fastce, name), logits)],
                "scipy": [partial(getattr(special, name), logits, axis=-1)],
            }
            times = take_turns(calls, options.seconds / 4)
            print(f"{name} {shape.size}: {time_text(float(np.median(times['ours'])))}; "
                  f"times as long: scipy {ratio(times['scipy'], times['ours']).median:.1f}",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
