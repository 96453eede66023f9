"""How long is an epoch of the trainer, beside other libraries and beside its bare matrix products?

    python bench/training.py [--data DIR] [--hidden 128] [--batch-size 64] [--json FILE]

The same network (ReLU, Adam 1e-3), data, batches and shuffling for all, taking turns in one
process; peers that are not installed are left out. Each epoch ends with its mean training loss on
the host. The last column is the accuracy on the test images after all epochs that were trained
here; a time counts only where it is 0.9 or more.

A neighbour on one of the cores hurts products on several threads most: OpenBLAS's threads wait for
each other, thousands of times an epoch. Look at `best` then, or set OPENBLAS_NUM_THREADS=1.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import fastce
from fastce.benchmark.machine import describe
from fastce.benchmark.timing import SETTLE_SECONDS, ratio
from fastce.mlp import MLPClassifier, load_mnist, network

LEARNING_RATE = 1e-3
N_CLASSES = 10
LEARNT = 0.9  # test accuracy; the embedded subset gets there in about three epochs

# An epoch to run, which returns its mean training loss; and the logits of test images.
Contender = tuple[Callable[[], float], Callable[[np.ndarray], np.ndarray]]


def ours(X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], batch_size: int) -> Contender:
    classifier = MLPClassifier(hidden, batch_size=batch_size, learning_rate_init=LEARNING_RATE)
    classifier._begin(X.shape[1], np.arange(N_CLASSES))
    # Not partial_fit: it would check all of X at every epoch, which fit does once.
    return lambda: classifier._train_epoch(X, y), classifier.predict_proba


def torch(X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], batch_size: int) -> Contender:
    import torch
    from torch import nn

    torch.set_num_threads(fastce.get_num_threads())
    sizes = (X.shape[1], *hidden)
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], N_CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    images, labels = torch.from_numpy(X), torch.from_numpy(y.astype(np.int64))

    def epoch() -> float:
        total = torch.zeros(())
        for rows in torch.randperm(len(images)).split(batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        return float(total) / len(images)

    def logits(X: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(X)).numpy()

    return epoch, logits


def sklearn(X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], batch_size: int) -> Contender:
    from sklearn.neural_network import MLPClassifier as Theirs

    classifier = Theirs(hidden, alpha=0, batch_size=batch_size, learning_rate_init=LEARNING_RATE)
    classes = np.arange(N_CLASSES)
    return lambda: classifier.partial_fit(X, y, classes=classes).loss_, classifier.predict_proba


def jax(X: np.ndarray, y: np.ndarray, hidden: tuple[int, ...], batch_size: int) -> Contender:
    """One jitted scan per epoch, over whole batches only: a scan cannot have a shorter last one."""
    import jax
    from jax import numpy as jnp

    sizes = (X.shape[1], *hidden, N_CLASSES)
    rng = np.random.default_rng(0)
    params = [
        (jnp.array(weight), jnp.array(bias))
        for weight, bias in network.layer_views(network.init_params(sizes, rng), sizes)
    ]
    images, labels = jnp.array(X), jnp.array(y.astype(np.int32))
    n_batches = len(X) // batch_size

    def forward(params, batch):
        for weight, bias in params[:-1]:
            batch = jax.nn.relu(batch @ weight + bias)
        return batch @ params[-1][0] + params[-1][1]

    def mean_loss(params, batch, targets):
        log_p = jax.nn.log_softmax(forward(params, batch))
        return -jnp.take_along_axis(log_p, targets[:, None], axis=1).mean()

    def step(state, rows):
        params, first, second, count = state
        loss, grads = jax.value_and_grad(mean_loss)(params, images[rows], labels[rows])
        count += 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        size, correction = LEARNING_RATE / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
        params = jax.tree.map(
            lambda p, m, v: p - size * m / (jnp.sqrt(v) / correction + 1e-8), params, first, second
        )
        return (params, first, second, count), loss

    scan = jax.jit(lambda state, order: jax.lax.scan(step, state, order), donate_argnums=0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, zeros, jax.tree.map(jnp.zeros_like, params), jnp.float32(0))

    def epoch() -> float:
        nonlocal state
        order = rng.permutation(len(X))[: n_batches * batch_size].reshape(n_batches, batch_size)
        state, losses = scan(state, order.astype(np.int32))
        return float(losses.mean())

    return epoch, lambda X: np.asarray(forward(state[0], X))


def bare_products(X: np.ndarray, hidden: tuple[int, ...], batch_size: int) -> Callable[[], float]:
    """The matrix products of an epoch, through NumPy, over images in the order of the file."""
    sizes = (X.shape[1], *hidden, N_CLASSES)
    params = network.init_params(sizes, np.random.default_rng(0))
    weights = [weight for weight, _ in network.layer_views(params, sizes)]
    grads = [weight for weight, _ in network.layer_views(np.empty_like(params), sizes)]
    activations, deltas, _ = network.make_scratch(sizes, batch_size)
    for buffer in activations + deltas:
        buffer.fill(0.5)  # neither zeros nor garbage: NaN and subnormals have times of their own

    def epoch() -> float:
        for start in range(0, len(X) - batch_size + 1, batch_size):
            inputs = [X[start : start + batch_size], *activations[1:]]
            for i, weight in enumerate(weights):
                np.matmul(inputs[i], weight, out=activations[i + 1])
            for i in range(len(weights) - 1, -1, -1):
                np.matmul(inputs[i].T, deltas[i], out=grads[i])
                if i:
                    np.matmul(deltas[i], weights[i].T, out=deltas[i - 1])
        return 0.0

    return epoch


PEERS = {"torch": torch, "sklearn": sklearn, "jax": jax}


def take_turns(epochs: dict[str, Callable[[], float]], n_rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each epoch in each round. An epoch is long enough to warm itself up, and too long
    to be repeated within a turn, as the benchmark of the loss does; one round comes before."""
    times: dict[str, list[float]] = {name: [] for name in epochs}
    for n in range(n_rounds + 1):
        # Every other round backwards, so that nobody always follows the same neighbour.
        for name in list(epochs) if n % 2 else reversed(epochs):
            time.sleep(SETTLE_SECONDS)
            begin = time.perf_counter()
            loss = epochs[name]()
            times[name].append(time.perf_counter() - begin)
            if not math.isfinite(loss):
                raise ArithmeticError(f"{name}: the loss is {loss}")
    return {name: np.array(seconds[1:]) for name, seconds in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", metavar="DIR", help="the four IDX files (the embedded subset)")
    parser.add_argument("--hidden", type=int, nargs="*", default=[128])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="epochs timed of each (7)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    hidden, batch_size = tuple(options.hidden), options.batch_size

    X, y, X_test, y_test = load_mnist(options.data)
    contenders = {"fastce": ours(X, y, hidden, batch_size)}
    for name, make in PEERS.items():
        if find_spec(name):
            contenders[name] = make(X, y, hidden, batch_size)
    epochs = {name: epoch for name, (epoch, _) in contenders.items()}
    epochs["bare products"] = bare_products(X, hidden, batch_size)
    modules = [sys.modules[name] for name in contenders if name in sys.modules]
    machine = describe(modules)
    times = take_turns(epochs, options.rounds)

    print(
        f"{machine['cpu']}, {machine['n_threads']} threads, BLAS {machine['blas']}, "
        f"load {machine['load']:.2f} at the start, {machine['date']}"
    )
    print(
        f"{len(X)} images, {X.shape[1]}-{'-'.join(map(str, hidden))}-{N_CLASSES}, "
        f"batches of {batch_size}, Adam; {len(times['fastce'])} rounds"
    )
    print(f"{'':15}{'s/epoch':>8}{'best':>8}{'us/step':>9}  time / fastce's        accuracy")
    rows = {}
    for name, seconds in times.items():
        relative = ratio(seconds, times["fastce"])
        row = rows[name] = {
            "seconds": float(np.median(seconds)),
            "seconds_min": float(seconds.min()),
            "us_per_step": float(np.median(seconds)) / math.ceil(len(X) / batch_size) * 1e6,
            "ratio": relative._asdict(),
        }
        if name in contenders:
            logits = contenders[name][1](X_test)
            row["accuracy"] = float(np.mean(np.argmax(logits, axis=1) == y_test))
        print(
            f"{name:15}{row['seconds']:8.3f}{row['seconds_min']:8.3f}{row['us_per_step']:9.0f}  "
            f"{relative.median:5.2f} ({relative.low:.2f} to {relative.high:.2f}) "
            f"{row.get('accuracy', math.nan):12.4f}"
        )
    wrong = [name for name, row in rows.items() if row.get("accuracy", 1) < LEARNT]
    if wrong:
        print(f"has not learnt, so its time means nothing: {', '.join(wrong)}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "epochs": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
