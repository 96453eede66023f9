"""Every implementation that is timed, ours included, behind one signature. No timing here.

An adapter converts the arrays (which is not timed) and returns a call without arguments that
computes loss and gradient and returns them in the implementation's own types; `as_numpy` converts
those.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import import_module  # and not `import torch`: type checks pass with or without it
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastce

Array = NDArray[Any]
Call = Callable[[], Any]
# (logits, targets, grad, reduction): `grad` is a buffer for those who can take one; reduction is
# "mean", or "none" for per-row losses and the gradient of their sum. Who takes a number of threads
# is given fastce.get_num_threads().
Adapter = Callable[[Array, Array, Array, str], Call]


class Peer(NamedTuple):
    """An implementation: its adapter, the module it needs, what a reader of its times must know."""

    name: str
    module: str
    adapter: Adapter
    note: str
    divides: bool = True  # False: it knows no mean; it is timed without (which favours it)

    @property
    def installed(self) -> bool:
        return find_spec(self.module) is not None

    def load(self) -> ModuleType:
        """Import the module: seconds for some, hence not at our import, nor in a timed call."""
        return import_module(self.module)

    def reduction(self, wanted: str) -> str:
        return wanted if self.divides else "none"


def as_numpy(result: Sequence[Any]) -> tuple[Array, Array]:
    """Loss and gradient of any adapter's call, as NumPy arrays."""
    loss, grad = (x.detach() if hasattr(x, "detach") else x for x in result)
    return np.asarray(loss), np.asarray(grad)


_ours: Callable[..., Any] = fastce.cross_entropy_with_grad


def ours(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    # as users write it: a partial with keywords makes a dict a call, 0.1 microseconds
    return lambda: _ours(logits, targets, reduction=reduction, out=grad)


def ours_allocating(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    return lambda: _ours(logits, targets, reduction=reduction)


def numpy_textbook(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    rows, divisor = np.arange(len(logits)), len(logits) if reduction == "mean" else 1

    def call() -> tuple[Array, Array]:
        shifted = logits - logits.max(axis=1, keepdims=True)
        exps = np.exp(shifted)
        sums = exps.sum(axis=1, keepdims=True)
        losses = np.log(sums[:, 0]) - shifted[rows, targets]
        grad = exps / sums
        grad[rows, targets] -= 1
        grad /= divisor
        return (losses.mean() if reduction == "mean" else losses), grad

    return call


def scipy_special(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    special: Any = import_module("scipy.special")
    rows, divisor = np.arange(len(logits)), len(logits) if reduction == "mean" else 1

    def call() -> tuple[Array, Array]:
        losses = -special.log_softmax(logits, axis=1)[rows, targets]
        grad = special.softmax(logits, axis=1)
        grad[rows, targets] -= 1
        grad /= divisor
        return (losses.mean() if reduction == "mean" else losses), grad

    return call


def torch_eager(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    torch: Any = import_module("torch")
    return _torch_call(torch.nn.functional.cross_entropy, logits, targets, reduction)


def torch_compiled(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    return _torch_call(_compiled(logits.shape, logits.dtype, reduction), logits, targets, reduction)


@lru_cache(maxsize=1)
def _compiled(*specialised_for: object) -> Callable[..., Any]:
    torch: Any = import_module("torch")
    # After eight specialisations of one function torch.compile falls back to eager without a word.
    torch.compiler.reset()
    function: Callable[..., Any] = torch.compile(torch.nn.functional.cross_entropy, dynamic=False)
    return function


def _torch_call(loss_of: Callable[..., Any], logits: Array, targets: Array, reduction: str) -> Call:
    torch: Any = import_module("torch")
    torch.set_num_threads(fastce.get_num_threads())
    x = torch.from_numpy(logits).requires_grad_()
    y = torch.from_numpy(targets)
    upstream = torch.ones(len(x), dtype=x.dtype) if reduction == "none" else None

    def call() -> tuple[Any, Any]:
        loss = loss_of(x, y, reduction=reduction)
        (grad,) = torch.autograd.grad(loss, x, upstream)
        return loss, grad

    return call


def jax_jitted(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    jax: Any = import_module("jax")
    jax.config.update("jax_enable_x64", logits.dtype == np.float64)
    x, y = jax.device_put((logits, targets.astype(np.int32)))
    loss_and_grad = _jitted(reduction)
    if reduction == "mean":
        return lambda: jax.block_until_ready(loss_and_grad(x, y))

    def call() -> tuple[Any, Any]:
        (_, losses), grad = jax.block_until_ready(loss_and_grad(x, y))
        return losses, grad

    return call


@lru_cache
def _jitted(reduction: str) -> Callable[..., Any]:
    jax: Any = import_module("jax")
    jnp: Any = import_module("jax.numpy")

    def losses_of(x: Any, y: Any) -> Any:  # optax's softmax_cross_entropy_with_integer_labels
        label_logits = jnp.take_along_axis(x, y[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(x, axis=-1) - label_logits

    def mean_of(x: Any, y: Any) -> Any:
        return losses_of(x, y).mean()

    def sum_of(x: Any, y: Any) -> Any:
        losses = losses_of(x, y)
        return losses.sum(), losses

    if reduction == "mean":
        function: Callable[..., Any] = jax.value_and_grad(mean_of)
    else:
        function = jax.value_and_grad(sum_of, has_aux=True)
    jitted: Callable[..., Any] = jax.jit(function)
    return jitted


def sklearn_loss(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    sklearn: Any = import_module("sklearn._loss")
    losses = np.empty(len(logits), logits.dtype)
    return partial(
        sklearn.HalfMultinomialLoss(n_classes=logits.shape[1]).loss_gradient,
        y_true=targets.astype(logits.dtype),  # it wants the labels as floats
        raw_prediction=logits,
        loss_out=losses,
        gradient_out=grad,
        n_threads=fastce.get_num_threads(),
    )


def tensorflow_fused(logits: Array, targets: Array, grad: Array, reduction: str) -> Call:
    tf: Any = import_module("tensorflow")
    with tf.device("/CPU:0"):
        features, labels = tf.constant(logits), tf.constant(targets)
    fused = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits
    return partial(fused, features=features, labels=labels)


OURS = Peer("fastce", "fastce", ours, "out= a buffer that exists")
PEERS = (
    Peer("alloc", "fastce", ours_allocating, "fastce without out=: allocates the gradient"),
    Peer("numpy", "numpy", numpy_textbook, "textbook in the logits' dtype, one thread, allocates"),
    Peer("scipy", "scipy", scipy_special, "log_softmax and softmax, one thread, allocates"),
    Peer("torch", "torch", torch_eager, "cross_entropy and its backward, eager, allocates"),
    Peer("compile", "torch", torch_compiled, "the same under torch.compile, allocates"),
    Peer("jax", "jax", jax_jitted, "jitted value_and_grad, its own thread count, allocates"),
    Peer(
        "sklearn",
        "sklearn",
        sklearn_loss,
        "HalfMultinomialLoss.loss_gradient, outputs exist, no mean",
        divides=False,
    ),
    Peer(
        "tensorflow",
        "tensorflow",
        tensorflow_fused,
        "SparseSoftmaxCrossEntropyWithLogits, its own thread count, allocates, no mean",
        divides=False,
    ),
)
