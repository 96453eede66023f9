"""The network: flat float buffers, and functions that read and write them.

The loss and its gradient are fastce's own; what is trained, and in what order, is classifier.py's
business. `sizes` are the widths of all layers, inputs and classes included: (784, 128, 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Layer(NamedTuple):
    weight: np.ndarray  # (n_inputs, n_outputs): the faster order for both products of OpenBLAS
    bias: np.ndarray  # (n_outputs,)


class Scratch(NamedTuple):
    """What a step over n_rows writes; made once, so that no step allocates."""

    activations: list[np.ndarray]  # (n_rows, size): the batch, the hidden layers, the logits
    deltas: list[np.ndarray]  # the loss's gradient by each of them, but for the batch
    masks: list[np.ndarray]  # bool, for the hidden layers: where ReLU lets through


def n_params(sizes: Sequence[int]) -> int:
    return sum((n_inputs + 1) * n_outputs for n_inputs, n_outputs in pairwise(sizes))


def layer_views(flat: np.ndarray, sizes: Sequence[int]) -> list[Layer]:
    """The layers inside a flat buffer of n_params(sizes) elements: parameters, or a gradient."""
    layers = []
    start = 0
    for n_inputs, n_outputs in pairwise(sizes):
        bias_start = start + n_inputs * n_outputs
        weight = flat[start:bias_start].reshape(n_inputs, n_outputs)
        start = bias_start + n_outputs
        layers.append(Layer(weight, flat[bias_start:start]))
    return layers


def aligned_rows(n_rows: int, n: int) -> list[np.ndarray]:
    """Zeroed float32 buffers for the state of a step, placed where a pass over all is fastest.

    Each starts a cache line: NumPy's own start 16 bytes after one, and a step of Adam over 101,770
    parameters took 83 us instead of 31 there. And each starts at another quarter of a 4 KB page, as
    a store to the same place in another page delays a load: 33 instead of 38 us. (Zen 4.)
    """
    line, page = 16, 1024  # elements
    stride = -(-n // page) * page + page // 4
    memory = np.zeros(n_rows * stride + line, np.float32)
    start = -memory.ctypes.data // memory.itemsize % line
    return [memory[start + i * stride :][:n] for i in range(n_rows)]


def init_params(sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Normal weights of variance 2 / n_inputs (He et al. 2015, for ReLU), biases zero."""
    params = np.zeros(n_params(sizes), np.float32)
    for weight, _ in layer_views(params, sizes):
        rng.standard_normal(out=weight, dtype=np.float32)
        weight *= np.sqrt(np.float32(2 / weight.shape[0]))
    return params


def make_scratch(sizes: Sequence[int], n_rows: int, dtype: type = np.float32) -> Scratch:
    return Scratch(
        activations=[np.empty((n_rows, size), dtype) for size in sizes],
        deltas=[np.empty((n_rows, size), dtype) for size in sizes[1:]],
        masks=[np.empty((n_rows, size), np.bool_) for size in sizes[1:-1]],
    )


def first_rows(scratch: Scratch, n_rows: int) -> Scratch:
    """The same memory for a shorter batch."""
    return Scratch(*([buffer[:n_rows] for buffer in buffers] for buffers in scratch))


def forward(layers: Sequence[Layer], scratch: Scratch) -> np.ndarray:
    """From activations[0], the batch, fill the others; returns the last, the logits."""
    activations = scratch.activations
    last = len(layers) - 1
    for i, (weight, bias) in enumerate(layers):
        output = activations[i + 1]
        np.matmul(activations[i], weight, out=output)
        np.add(output, bias, out=output)
        if i < last:
            np.maximum(output, 0, out=output)
    return activations[-1]


def backward(layers: Sequence[Layer], grads: Sequence[Layer], scratch: Scratch) -> None:
    """From deltas[-1], the loss's gradient by the logits, fill `grads`; forward() came before."""
    activations, deltas, masks = scratch
    for i in range(len(layers) - 1, -1, -1):
        delta = deltas[i]
        np.matmul(activations[i].T, delta, out=grads[i].weight)
        np.add.reduce(delta, axis=0, out=grads[i].bias)
        if i:
            np.matmul(delta, layers[i].weight.T, out=deltas[i - 1])
            # Where ReLU's output is 0 so is its derivative (at the kink too, as everywhere).
            np.greater(activations[i], 0, out=masks[i - 1])
            np.multiply(deltas[i - 1], masks[i - 1], out=deltas[i - 1])


def sgd_step(
    params: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray,
    learning_rate: float,
    momentum: float,
) -> None:
    """velocity = momentum * velocity + grad; params -= learning_rate * velocity. Uses grad up."""
    np.multiply(velocity, np.float32(momentum), out=velocity)
    np.add(velocity, grad, out=velocity)
    np.multiply(velocity, np.float32(learning_rate), out=grad)
    np.subtract(params, grad, out=params)
