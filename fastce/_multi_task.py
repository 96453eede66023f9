"""Several losses made one, with learned weights: plain NumPy, as there are but a few numbers."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernel


class UncertaintyGradients(NamedTuple):
    """Gradients of `uncertainty_weighted`, each of the shape of the argument it is named after."""

    losses: NDArray[Any]
    log_variances: NDArray[Any]


def uncertainty_weighted(losses: ArrayLike, log_variances: ArrayLike) -> Any:
    """The sum of several tasks' losses, weighted by learned uncertainty.

    ``sum(exp(-s) * losses + s / 2)`` with ``s = log_variances``, one number a task, to be learned
    with the model from 0 on (Kendall, Gal and Cipolla, CVPR 2018, section 3.2: ``exp(-s)`` is one
    over the square of sigma, ``s / 2`` the logarithm of sigma). It may be negative. For a squared
    error, whose factor there is one half, give half of the error.

    Parameters
    ----------
    losses : array, one number a task
        The losses, of any shape.
    log_variances : array of the shape of losses
        The logarithms of the variances.

    Returns
    -------
    loss : float32 if both arrays are float32, else float64
        A scalar, summed in float64.

    Raises
    ------
    ValueError
        If the shapes differ.
    TypeError
        If an argument is not of real numbers.

    Examples
    --------
    >>> import fastce
    >>> print(fastce.uncertainty_weighted([0.5, 2.0], [0.0, 0.0]))
    2.5
    """
    return uncertainty_weighted_with_grad(losses, log_variances)[0]


def uncertainty_weighted_with_grad(
    losses: ArrayLike, log_variances: ArrayLike
) -> tuple[Any, UncertaintyGradients]:
    """`uncertainty_weighted` and its gradients.

    Those of the losses, ``exp(-s)``, are what each task's own gradient is multiplied by: give
    them as `upstream`.

    Parameters
    ----------
    losses, log_variances
        As in `uncertainty_weighted`.

    Returns
    -------
    loss : float32 if both arrays are float32, else float64
        As `uncertainty_weighted`.
    grads : named tuple of arrays (losses, log_variances)
        ``exp(-s)`` and ``1 / 2 - exp(-s) * losses``, of the dtype of the loss.

    Raises
    ------
    ValueError, TypeError
        As `uncertainty_weighted`.

    Examples
    --------
    >>> import fastce
    >>> loss, grads = fastce.uncertainty_weighted_with_grad([0.5, 2.0], [0.0, 0.0])
    >>> print(grads.losses, grads.log_variances)
    [1. 1.] [ 0.  -1.5]
    """
    loss, s = _numbers(losses, "losses"), _numbers(log_variances, "log_variances")
    if loss.shape != s.shape:
        raise ValueError(f"log_variances must have the shape of losses {loss.shape}, got {s.shape}")
    dtype = np.float32 if loss.dtype == s.dtype == np.float32 else np.float64
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # as the kernels: inf, NaN
        precision = np.exp(-s.astype(np.float64))
        weighted = precision * loss.astype(np.float64)
        weighted = np.where(loss == 0, 0.0, weighted)  # 0 * inf = 0
        grads = UncertaintyGradients(precision.astype(dtype), (0.5 - weighted).astype(dtype))
        return dtype((weighted + s / 2.0).sum(dtype=np.float64)), grads


def _numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    array = _kernel.check_array(values, name, "an array of numbers")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got an array of {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)
