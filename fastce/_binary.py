"""Binary cross-entropy, for two classes or many labels: signatures and what they promise.

Arguments are checked in _kernel.pyx; the formulas are in csrc/binary.h.
"""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastce import _kernel
from fastce._cross_entropy import OnEmpty, Reduction


def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Binary cross-entropy of logits: every element is a yes-or-no question of its own.

    ``-pos_weight * t * log(p) - (1 - t) * log(1 - p)`` with ``p = sigmoid(logits)``. ``-log(p)`` is
    computed as ``max(-x, 0) + log1p(exp(-abs(x)))``, which keeps small losses exact.

    Parameters
    ----------
    logits : array of any shape
        Scores before the sigmoid, of any strides; unaligned or byte-swapped ones are copied.
        ``-inf`` and ``inf`` are probabilities 0 and 1. Integers and lists become float64.
    targets : integers, bools or floats of the logits' shape
        0 and 1; floats may lie in between. Floats up to 2**-10 outside of [0, 1], as averages of
        labels may round to, are taken as they are; others are refused.
    pos_weight : array that broadcasts to the logits, optional
        Factor of the part of target 1, 0 or more, for each label say; not in the mean's divisor.
    sample_weight : array that broadcasts to the logits, optional
        Factor of each element, 0 or more. An element of weight 0 is not there.
    where : bool array that broadcasts to the logits, optional
        The elements to keep. One that is not there has loss 0 and gradient 0, may hold NaN, and its
        target may be anything: ``where=labels >= 0`` skips labels that are -1.
    label_smoothing : float, default 0.0
        In [0, 1]: targets move to one half by this part, as in Keras.
    reduction : {"none", "sum", "mean"}, default "mean"
        ``"mean"`` divides by the sum of ``sample_weight`` over the elements kept. PyTorch divides
        by their number whatever the weights are; `normalizer` does that.
    normalizer : float, optional
        Replaces that divisor.
    on_empty : {"nan", "zero", "raise"}, default "nan"
        What the mean is when no weight is left.
    n_threads : int, optional
        1 or more; default `get_num_threads`. The result is the same, bit for bit, for any number.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the logits' shape.

    Raises
    ------
    ValueError
        If a shape or a value does not fit; a target out of range is named by its position.
    TypeError
        If an argument is of the wrong kind.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.binary_cross_entropy([[2.0, -1.0], [0.0, 3.0]], [[1, 0], [0, 1]]):.4f}")
    0.2955

    A label that is not known counts for nothing:

    >>> import numpy as np
    >>> labels = np.array([1, 0, -1])
    >>> print(f"{fastce.binary_cross_entropy([2.0, -1.0, 5.0], labels, where=labels >= 0):.4f}")
    0.2201
    """
    return _kernel.binary_loss(
        False, 0.0, None, 1, logits, targets, pos_weight, sample_weight, where, label_smoothing,
        reduction, normalizer, on_empty, None, None, n_threads,
    )  # fmt: skip


def binary_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`binary_cross_entropy` and its gradient with respect to the logits, in one pass.

    Without options ``grad = sigmoid(logits) - targets``, where for target 1 minus the probability
    of 0 is computed as such: nothing cancels where that is small.

    Parameters
    ----------
    logits, targets, pos_weight, sample_weight, where, label_smoothing, reduction, normalizer, \
    on_empty, n_threads
        As in `binary_cross_entropy`.
    out : array of the logits' shape, optional
        The buffer for the gradient, of any float dtype and strides, aligned and of native byte
        order. May be `logits` itself, which is then overwritten; any other overlap with an input is
        refused.
    upstream : float, or for ``reduction="none"`` an array of the logits' shape, optional
        Factor of the gradient: what the loss is multiplied by further on (the chain rule).

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `binary_cross_entropy`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`.

    Raises
    ------
    ValueError, TypeError
        As `binary_cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_cross_entropy_with_grad([2.0, 0.0], [1, 0])
    >>> print(grad.round(4))
    [-0.0596  0.25  ]
    """
    result: tuple[Any, NDArray[Any]] = _kernel.binary_loss(
        False, 0.0, None, 2, logits, targets, pos_weight, sample_weight, where, label_smoothing,
        reduction, normalizer, on_empty, out, upstream, n_threads,
    )  # fmt: skip
    return result


def binary_focal_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Focal loss of logits, element by element: what is right already counts for less.

    ``a * (1 - p)**gamma * -log(p)`` with ``p`` the probability of the target, and ``a`` `alpha` for
    target 1 and ``1 - alpha`` for target 0 (Lin et al. 2017, eq. 5).

    Parameters
    ----------
    logits, sample_weight, where, reduction, normalizer, on_empty, n_threads
        As in `binary_cross_entropy`. Dense detectors divide by the number of objects: `normalizer`.
    targets : integers, bools or floats of the logits' shape
        0 and 1; nothing in between, where peers disagree about the formula.
    gamma : float, default 2.0
        0 or more; 0 is binary cross-entropy.
    alpha : float, optional
        In [0, 1]; not in the mean's divisor. The paper's best is 0.25.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the logits' shape.

    Raises
    ------
    ValueError, TypeError
        As `binary_cross_entropy`, and if gamma, alpha are out of range.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.binary_focal_loss([2.0, 0.0], [1, 0]):.4f}")
    0.0875
    """
    return _kernel.binary_loss(
        True, gamma, alpha, 1, logits, targets, None, sample_weight, where, 0.0, reduction,
        normalizer, on_empty, None, None, n_threads,
    )  # fmt: skip


def binary_focal_loss_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`binary_focal_loss` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets, gamma, alpha, sample_weight, where, reduction, normalizer, on_empty, n_threads
        As in `binary_focal_loss`.
    out, upstream
        As in `binary_cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `binary_focal_loss`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`.

    Raises
    ------
    ValueError, TypeError
        As `binary_focal_loss`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.binary_focal_loss_with_grad([2.0, 0.0], [1, 0])
    >>> print(grad.round(4))
    [-0.0024  0.1491]
    """
    result: tuple[Any, NDArray[Any]] = _kernel.binary_loss(
        True, gamma, alpha, 2, logits, targets, None, sample_weight, where, 0.0, reduction,
        normalizer, on_empty, out, upstream, n_threads,
    )  # fmt: skip
    return result
