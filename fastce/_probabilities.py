"""Losses of what is log-probabilities or probabilities already: signatures and what they promise.

Arguments are checked in _kernel.pyx; the work is in csrc/gather.h. From logits, `cross_entropy` is
more exact.
"""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastce import _kernel
from fastce._cross_entropy import OnEmpty, Reduction


def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Negative log-likelihood of class indices, from log-probabilities.

    ``-log_probs[i, targets[i]]``, with the weights and reductions of `cross_entropy`.

    Parameters
    ----------
    log_probs : array with a class axis
        What `log_softmax` gives, of any strides. Nobody checks that the probabilities sum to one.
    targets : integers of the rows' shape, or floats of the array's shape
        The class of each row; or probabilities, whose rows need not sum to one. Then the loss is
        the sum over classes, in which 0 times infinity is 0.
    where : bool array of the rows' or of the array's shape, optional
        The rows to keep, or the classes; a class that is hidden has log-probability ``-inf``.
    axis, class_weight, sample_weight, ignore_index, reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`.

    Returns
    -------
    loss : float64 for a float64 array, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> log_probs = fastce.log_softmax([[2.0, 0.0], [0.0, 0.0]])
    >>> print(f"{fastce.nll_loss(log_probs, [0, 1]):.4f}")
    0.4100
    """
    return _kernel.softmax_loss(
        _kernel.NLL, 0.0, 0.0, 1, log_probs, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, 1.0, None, 0.0, reduction, normalizer, on_empty, None, None,
        n_threads,
    )  # fmt: skip


def nll_loss_with_grad(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`nll_loss` and its gradient with respect to the log-probabilities.

    It is ``-weight`` at the target, divided as `reduction` says, and 0 elsewhere.

    Parameters
    ----------
    log_probs, targets, axis, class_weight, sample_weight, ignore_index, where, reduction, \
    normalizer, on_empty, n_threads
        As in `nll_loss`.
    out, upstream
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for a float64 array, else float32
        As `nll_loss`.
    grad : array of the shape of log_probs
        The gradient of the reduced loss (for ``"none"``, of the sum), of the dtype of
        log_probs, or `out`.

    Raises
    ------
    ValueError, TypeError
        As `nll_loss`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.nll_loss_with_grad([[-0.1, -2.3], [-0.7, -0.7]], [0, 1])
    >>> print(grad)
    [[-0.5  0. ]
     [ 0.  -0.5]]
    """
    result: tuple[Any, NDArray[Any]] = _kernel.softmax_loss(
        _kernel.NLL, 0.0, 0.0, 2, log_probs, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, 1.0, None, 0.0, reduction, normalizer, on_empty, out, upstream,
        n_threads,
    )  # fmt: skip
    return result


def log_loss(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Negative log-likelihood of class indices, from probabilities.

    ``-log(probabilities[i, targets[i]])``, neither clipped nor renormalised: a probability of 0 for
    the target costs infinity, where scikit-learn's ``log_loss`` says 36. Elsewhere the two agree.

    Parameters
    ----------
    probabilities : array with a class axis
        Of any strides. Nobody checks that rows sum to one; the logarithm of a negative one is NaN.
    targets : integers of the rows' shape, or floats of the array's shape
        The class of each row; or probabilities, whose rows need not sum to one. Then the loss is
        the sum over classes, in which 0 times infinity is 0.
    where : bool array of the rows' or of the array's shape, optional
        The rows to keep, or the classes; a class that is hidden has probability 0.
    axis, class_weight, sample_weight, ignore_index, reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`.

    Returns
    -------
    loss : float64 for a float64 array, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.log_loss([[0.9, 0.1], [0.5, 0.5]], [0, 1]):.4f}")
    0.3993
    """
    return _kernel.softmax_loss(
        _kernel.LOG_LOSS, 0.0, 0.0, 1, probabilities, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, 1.0, None, 0.0, reduction, normalizer, on_empty, None, None,
        n_threads,
    )  # fmt: skip


def log_loss_with_grad(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`log_loss` and its gradient with respect to the probabilities.

    It is ``-weight / p`` at the target, divided as `reduction` says, and 0 elsewhere.

    Parameters
    ----------
    probabilities, targets, axis, class_weight, sample_weight, ignore_index, where, reduction, \
    normalizer, on_empty, n_threads
        As in `log_loss`.
    out, upstream
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for a float64 array, else float32
        As `log_loss`.
    grad : array of the shape of probabilities
        The gradient of the reduced loss (for ``"none"``, of the sum), of the dtype of
        probabilities, or `out`.

    Raises
    ------
    ValueError, TypeError
        As `log_loss`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.log_loss_with_grad([[0.8, 0.2], [0.5, 0.5]], [0, 1])
    >>> print(grad)
    [[-0.625  0.   ]
     [ 0.    -1.   ]]
    """
    result: tuple[Any, NDArray[Any]] = _kernel.softmax_loss(
        _kernel.LOG_LOSS, 0.0, 0.0, 2, probabilities, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, 1.0, None, 0.0, reduction, normalizer, on_empty, out, upstream,
        n_threads,
    )  # fmt: skip
    return result
