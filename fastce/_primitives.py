"""softmax, log_softmax and logsumexp: signatures and what they promise."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernel


def softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any]:
    """Softmax along an axis: ``exp(x) / sum(exp(x))``, without overflow.

    Parameters
    ----------
    logits : array with a class axis
        float16, bfloat16 (ml_dtypes), float32 or float64, any strides; integers and lists become
        float64. ``-inf`` gives 0; a row of nothing but ``-inf``, or with NaN or ``+inf``, is NaN.
    axis : int, default -1
        The class axis.
    out : array of the logits' shape, optional
        The buffer for the result, of any of these dtypes, aligned and of native byte order; may be
        `logits` itself.
    n_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    array of the logits' shape and dtype, or `out`

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> print(fastce.softmax([0.0, 0.0, 0.0, 0.0]))
    [0.25 0.25 0.25 0.25]
    """
    result: NDArray[Any] = _kernel.softmax(_kernel.SOFTMAX, logits, axis, out, n_threads)
    return result


def log_softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> NDArray[Any]:
    """Logarithm of the softmax along an axis: ``(x - max) - log1p(sum of the other exponentials)``.

    In this form the likeliest class keeps its last bits, where subtracting ``logsumexp`` leaves 0.

    Parameters
    ----------
    logits, axis, out, n_threads
        As in `softmax`. ``-inf`` gives ``-inf``.

    Returns
    -------
    array of the logits' shape and dtype, or `out`

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.log_softmax([40.0, 0.0])[0]:.4e}")
    -4.2484e-18
    """
    result: NDArray[Any] = _kernel.softmax(_kernel.LOG_SOFTMAX, logits, axis, out, n_threads)
    return result


def logsumexp(
    logits: ArrayLike,
    *,
    axis: int = -1,
    keepdims: bool = False,
    out: NDArray[Any] | None = None,
    n_threads: int | None = None,
) -> Any:
    """Logarithm of the sum of exponentials along an axis: ``max + log1p(sum of the others)``.

    Parameters
    ----------
    logits, axis, n_threads
        As in `softmax`. A row of nothing but ``-inf`` gives ``-inf``, one with ``+inf`` ``+inf``.
    keepdims : bool, default False
        Whether the axis stays, with length 1.
    out : array of the result's shape, optional
        Where the result goes, of float32 or float64.

    Returns
    -------
    array of the rows' shape (with `keepdims`, of the logits' number of axes)
        float64 for float64 logits, else float32; or `out`.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.logsumexp([1000.0, 1000.0]):.4f}")
    1000.6931
    """
    if not isinstance(keepdims, (bool, np.bool_)):
        raise TypeError(f"keepdims must be a bool, got {type(keepdims).__name__}")
    result = _kernel.softmax(_kernel.LOGSUMEXP, logits, axis, None, n_threads)
    result = np.expand_dims(result, axis) if keepdims else result
    if out is None:
        return result
    _kernel.check_out_for(result, out, logits)
    with np.errstate(all="ignore"):  # of a float64 beyond float32
        out[...] = result
    return out
