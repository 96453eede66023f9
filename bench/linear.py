"""What do losses cost that are more than logits: a last layer's product, a teacher?

linear_cross_entropy beside all logits at once and beside PyTorch, distillation_loss beside
PyTorch's kl_div; loss and gradients, in turns.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.report import header, time_text
from fastce.benchmark.timing import ratio, take_turns

LAYERS = ((4096, 512, 32000), (2048, 768, 50257))  # rows, features, classes
TEACHER = (4096, 1000)


def at_once(hidden: Any, weight: Any, targets: Any) -> Any:
    logits = hidden @ weight.T
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, out=logits)
    return loss, grad @ weight, grad.T @ hidden


def of_torch(loss: Callable[..., Any], *arrays: Any) -> Callable[[], object]:
    """loss(arrays as tensors), and its gradients by the floating ones."""
    import torch

    torch.set_num_threads(fastce.get_num_threads())
    tensors = [torch.from_numpy(array) for array in arrays]

    def call() -> None:
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
        loss(torch.nn.functional, *leaves).backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="per call and size")
    seconds = parser.parse_args().seconds
    has_torch = find_spec("torch") is not None
    rng = np.random.default_rng(0)
    print(header(describe()), end="\n\n")
    for n_rows, n_features, n_classes in LAYERS:
        hidden = rng.standard_normal((n_rows, n_features), dtype=np.float32)
        weight = rng.standard_normal((n_classes, n_features), dtype=np.float32) / n_features**0.5
        layer = hidden, weight.astype(np.float32), rng.integers(0, n_classes, n_rows)
        calls = {
            "ours": partial(fastce.linear_cross_entropy_with_grad, *layer),
            "all logits at once": partial(at_once, *layer),
        }
        if has_torch:
            calls["torch"] = of_torch(lambda F, h, w, y: F.cross_entropy(h @ w.T, y), *layer)
            calls["torch linear"] = of_torch(
                lambda F, h, w, y: F.linear_cross_entropy(h, w, y), *layer
            )
        show(f"linear_cross_entropy {n_rows}x{n_features}x{n_classes}", calls, seconds)
    student, teacher = rng.standard_normal((2, *TEACHER), dtype=np.float32)
    calls = {"ours": partial(fastce.distillation_loss_with_grad, student, teacher, temperature=2.0)}
    if has_torch:
        calls["torch"] = of_torch(
            lambda F, s, t: F.kl_div(
                F.log_softmax(s / 2, 1), F.softmax(t.detach() / 2, 1), reduction="batchmean"
            ),
            student,
            teacher,
        )
    show(f"distillation_loss {TEACHER[0]}x{TEACHER[1]}", calls, seconds)


def show(title: str, calls: dict[str, Callable[..., object]], seconds: float) -> None:
    times = take_turns({name: [call] for name, call in calls.items()}, seconds)
    cells = [
        f"{name} {ratio(values, times['ours']).median:.2f}"
        for name, values in times.items()
        if name != "ours"
    ]
    ours = time_text(float(np.median(times["ours"])))
    print(f"{title}: {ours}; times as long: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
