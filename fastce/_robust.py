"""Robust losses, functions of the target's probability alone: signatures and what they promise.

Their formulas are in csrc/epilogue.h, one factor per row; the loops are those of cross_entropy.
"""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastce import _kernel
from fastce._cross_entropy import OnEmpty, Reduction


def focal_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float = 1.0,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Focal loss of softmax probabilities: rows that are right already count for less.

    ``alpha * (1 - p)**gamma * -log(p)`` with ``p`` the target's probability (Lin et al. 2017,
    eq. 4, for many classes). ``1 - p`` is the sum of the other probabilities, so nothing cancels or
    is clipped.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, where, logit_scale, softcap, \
    reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`; targets are class indices.
    gamma : float, default 2.0
        0 or more; 0 is cross-entropy.
    alpha : float, default 1.0
        A factor of the loss, 0 or more; not in the mean's divisor. Per class: `class_weight`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`, and if gamma, alpha are out of range.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.focal_loss([[0.0, 0.0]], [0]):.4f}")
    0.1733
    """
    gamma = _kernel.check_number(gamma, "gamma", 0, True, 1e6)
    alpha = _kernel.check_number(alpha, "alpha", 0, True, 1e30)
    return _kernel.softmax_loss(
        _kernel.FOCAL, alpha, gamma, 1, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer, on_empty, None,
        None, n_threads,
    )  # fmt: skip


def focal_loss_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma: float = 2.0,
    alpha: float = 1.0,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`focal_loss` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets, gamma, alpha, axis, class_weight, sample_weight, ignore_index, where, \
    logit_scale, softcap, reduction, normalizer, on_empty, n_threads
        As in `focal_loss`.
    out, upstream
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `focal_loss`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`.

    Raises
    ------
    ValueError, TypeError
        As `focal_loss`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.focal_loss_with_grad([[0.0, 0.0]], [0])
    >>> print(grad.round(4))
    [[-0.2983  0.2983]]
    """
    gamma = _kernel.check_number(gamma, "gamma", 0, True, 1e6)
    alpha = _kernel.check_number(alpha, "alpha", 0, True, 1e30)
    result: tuple[Any, NDArray[Any]] = _kernel.softmax_loss(
        _kernel.FOCAL, alpha, gamma, 2, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer, on_empty, out,
        upstream, n_threads,
    )  # fmt: skip
    return result


def generalized_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    q: float = 0.7,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Generalised cross-entropy: between cross-entropy and the mean absolute error.

    ``(1 - p**q) / q`` with ``p`` the target's probability (Zhang and Sabuncu 2018, eq. 6).

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, where, logit_scale, softcap, \
    reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`; targets are class indices.
    q : float, default 0.7
        In (0, 1]: towards 0 cross-entropy, 1 half the absolute error.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`, and if q is out of range.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.generalized_cross_entropy([[0.0, 0.0]], [0]):.4f}")
    0.5492
    """
    q = _kernel.check_number(q, "q", 0, False, 1)
    return _kernel.softmax_loss(
        _kernel.GENERALIZED, q, 0.0, 1, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer, on_empty, None,
        None, n_threads,
    )  # fmt: skip


def generalized_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    q: float = 0.7,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`generalized_cross_entropy` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets, q, axis, class_weight, sample_weight, ignore_index, where, \
    logit_scale, softcap, reduction, normalizer, on_empty, n_threads
        As in `generalized_cross_entropy`.
    out, upstream
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `generalized_cross_entropy`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`.

    Raises
    ------
    ValueError, TypeError
        As `generalized_cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.generalized_cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> print(grad.round(4))
    [[-0.3078  0.3078]]
    """
    q = _kernel.check_number(q, "q", 0, False, 1)
    result: tuple[Any, NDArray[Any]] = _kernel.softmax_loss(
        _kernel.GENERALIZED, q, 0.0, 2, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer, on_empty, out,
        upstream, n_threads,
    )  # fmt: skip
    return result


def symmetric_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Symmetric cross-entropy: cross-entropy plus its reverse, for noisy labels.

    ``alpha * -log(p) + beta * -log_zero * (1 - p)`` with ``p`` the target's probability (Wang et
    al. 2019, eq. 7).

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, where, logit_scale, softcap, \
    reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`; targets are class indices.
    alpha, beta : float, default 0.1 and 1.0
        Factors of cross-entropy and of reverse cross-entropy, 0 or more.
    log_zero : float, default -4.0
        What stands for ``log(0)`` in the reverse part, 0 or less.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`, and if alpha, beta, log_zero are out of range.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.symmetric_cross_entropy([[0.0, 0.0]], [0]):.4f}")
    2.0693
    """
    alpha = _kernel.check_number(alpha, "alpha", 0, True, 1e30)
    beta = _kernel.check_number(beta, "beta", 0, True, 1e30)
    log_zero = _kernel.check_number(log_zero, "log_zero", -1e30, True, 0)
    return _kernel.softmax_loss(
        _kernel.SYMMETRIC, alpha, -beta * log_zero, 1, logits, targets, axis, class_weight,
        sample_weight, ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer,
        on_empty, None, None, n_threads,
    )  # fmt: skip


def symmetric_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = -4.0,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`symmetric_cross_entropy` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets, alpha, beta, log_zero, axis, class_weight, sample_weight, ignore_index, \
    where, logit_scale, softcap, reduction, normalizer, on_empty, n_threads
        As in `symmetric_cross_entropy`.
    out, upstream
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `symmetric_cross_entropy`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`.

    Raises
    ------
    ValueError, TypeError
        As `symmetric_cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.symmetric_cross_entropy_with_grad([[0.0, 0.0]], [0])
    >>> print(grad.round(4))
    [[-1.05  1.05]]
    """
    alpha = _kernel.check_number(alpha, "alpha", 0, True, 1e30)
    beta = _kernel.check_number(beta, "beta", 0, True, 1e30)
    log_zero = _kernel.check_number(log_zero, "log_zero", -1e30, True, 0)
    result: tuple[Any, NDArray[Any]] = _kernel.softmax_loss(
        _kernel.SYMMETRIC, alpha, -beta * log_zero, 2, logits, targets, axis, class_weight,
        sample_weight, ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer,
        on_empty, out, upstream, n_threads,
    )  # fmt: skip
    return result


def poly1_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: float = 2.0,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Poly-1 loss: cross-entropy with its first polynomial term scaled.

    ``-log(p) + epsilon * (1 - p)`` with ``p`` the target's probability (Leng et al. 2022, eq. 6).
    For probabilities as targets it is ``sum(t * (-log(p) + epsilon * (1 - p)))``, as in optax.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, where, logit_scale, softcap, \
    reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`.
    epsilon : float, default 2.0
        Any finite number.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`, and if epsilon is out of range.

    Examples
    --------
    >>> import fastce
    >>> print(f"{fastce.poly1_loss([[0.0, 0.0]], [0]):.4f}")
    1.6931
    """
    epsilon = _kernel.check_number(epsilon, "epsilon", -1e30, True, 1e30)
    return _kernel.softmax_loss(
        _kernel.POLY1, epsilon, 0.0, 1, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer, on_empty, None,
        None, n_threads,
    )  # fmt: skip


def poly1_loss_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: float = 2.0,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """`poly1_loss` and its gradient with respect to the logits, in one pass.

    Parameters
    ----------
    logits, targets, epsilon, axis, class_weight, sample_weight, ignore_index, where, \
    logit_scale, softcap, reduction, normalizer, on_empty, n_threads
        As in `poly1_loss`.
    out, upstream
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `poly1_loss`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`.

    Raises
    ------
    ValueError, TypeError
        As `poly1_loss`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.poly1_loss_with_grad([[0.0, 0.0]], [0])
    >>> print(grad.round(4))
    [[-1.  1.]]
    """
    epsilon = _kernel.check_number(epsilon, "epsilon", -1e30, True, 1e30)
    result: tuple[Any, NDArray[Any]] = _kernel.softmax_loss(
        _kernel.POLY1, epsilon, 0.0, 2, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, 0.0, logit_scale, softcap, 0.0, reduction, normalizer, on_empty, out,
        upstream, n_threads,
    )  # fmt: skip
    return result
