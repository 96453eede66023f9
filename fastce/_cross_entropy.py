"""Softmax cross-entropy: signatures and what they promise.  Arguments are checked in _kernel.pyx."""

from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray

from fastce import _kernel

Reduction = Literal["none", "sum", "mean"]


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    n_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of logits against class indices.

    For each row ``loss = w * ((max - x_y) + log1p(sum of the other exponentials))``, where ``x_y``
    is the target's logit, the exponentials are ``exp(x - max)`` and ``w = sample_weight *
    class_weight[y]``. This is ``-w * log(softmax(x)[y])`` in the form that keeps small losses exact
    (Blanchard, Higham and Higham, IMA J. Numer. Anal. 2021, section 4).

    Parameters
    ----------
    logits : array of shape (..., n_classes)
        Unnormalised scores, float32 or float64, any strides. ``-inf`` masks a class. Integers and
        lists become float64.
    targets : integer array of shape (...)
        The correct class of each row, in ``[0, n_classes)`` or `ignore_index`. Any integer dtype.
    class_weight : array of shape (n_classes,), optional
        Factor of each row by its target, 0 or more.
    sample_weight : array of the rows' shape, optional
        Factor of each row, 0 or more. A row of weight 0 is not there, as if ignored.
    ignore_index : int or None, default -100
        Rows with this target count for nothing: loss 0, gradient 0, never read.
    reduction : {"none", "sum", "mean"}, default "mean"
        ``"mean"`` divides by the sum of ``w`` over the rows kept, as PyTorch does.
    n_threads : int, optional
        1 or more; default `get_num_threads`. Small calls use fewer. The result is the same, bit for
        bit, for any number.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the rows' shape. The mean over no row is NaN.

    Raises
    ------
    ValueError
        If a shape or a value does not fit; a target out of range is named by its position.
    TypeError
        If an argument is of the wrong kind.

    Examples
    --------
    >>> import fastce
    >>> loss = fastce.cross_entropy([[2.0, 0.0], [0.0, 0.0]], [0, 1])
    >>> print(f"{loss:.4f}")
    0.4100

    A confident row keeps its small loss:

    >>> import numpy as np
    >>> loss = fastce.cross_entropy(np.array([[30, 0]], np.float32), [0])
    >>> print(f"{loss:.4e}")
    9.3576e-14
    """
    return _kernel.cross_entropy(
        logits, targets, False, class_weight, sample_weight, ignore_index, reduction, None, n_threads
    )


def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    reduction: Reduction = "mean",
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """Softmax cross-entropy and its gradient with respect to the logits, in one pass.

    ``grad = w * scale * (p - onehot)`` with ``p = softmax(x)``; the target's element is computed as
    minus the sum of the other probabilities, so that it is exact where ``p`` is near 1. ``scale`` is
    one over the mean's divisor, or 1.

    Parameters
    ----------
    logits, targets, class_weight, sample_weight, ignore_index, reduction, n_threads
        As in `cross_entropy`.
    out : array of the logits' shape, optional
        The buffer for the gradient, float32 or float64. May be `logits` itself, which is then
        overwritten; any other overlap with an input is refused.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `cross_entropy`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or `out`.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.cross_entropy_with_grad([[2.0, 0.0], [0.0, 0.0]], [0, 1])
    >>> print(grad.round(4))
    [[-0.0596  0.0596]
     [ 0.25   -0.25  ]]
    """
    result: tuple[Any, NDArray[Any]] = _kernel.cross_entropy(
        logits, targets, True, class_weight, sample_weight, ignore_index, reduction, out, n_threads
    )
    return result
