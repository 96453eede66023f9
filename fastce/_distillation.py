"""A student's loss against a teacher's logits, in float64. Its rows are csrc/distillation.h."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernel
from fastce._primitives import log_softmax

Array = NDArray[Any]

BLOCK = 1 << 20  # logits at a time: what has to be converted first takes 8 MB at most


def distillation_loss(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: float = 1.0,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    n_threads: int | None = None,
) -> Any:
    """Knowledge distillation: the student's divergence from the teacher, both softened.

    A row's loss is ``T**2 * KL(q || p)`` with ``q = softmax(teacher / T)`` and ``p =
    softmax(student / T)`` (Hinton, Vinyals and Dean 2015, section 2). It is summed as ``q * (d +
    expm1(-d))``, ``d = log(q / p)``, no term of which is negative, and ``d`` comes from the
    differences of logits: small losses, of a student near its teacher or at a high temperature,
    keep their digits, where the sum of ``q * d`` cancels.

    Parameters
    ----------
    student : array with a class axis
        Logits, float16, bfloat16, float32, float64 or integers. ``-inf`` hides a class; the loss
        is inf where the teacher has it, with a probability above 1e-308.
    teacher : array of the shape of student
        Logits of any of these dtypes.
    temperature : float, default 1.0
        ``T``, from 1e-30 to 1e30.
    axis : int, default -1
        The class axis.
    sample_weight : array of the rows' shape, optional
        Factor of each row, finite and 0 or more. A row of weight 0 is not there.
    reduction : {"none", "sum", "mean"}, default "mean"
        ``"mean"`` divides by the number of rows, or the sum of their weights; over none it is NaN.
    n_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    loss : float64 if student is float64 or of integers, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import fastce
    >>> loss = fastce.distillation_loss([[1.0, 0.0]], [[2.0, 0.0]], temperature=2.0)
    >>> print(f"{loss:.4f}")
    0.1054
    """
    return _distill(
        False, student, teacher, temperature, axis, sample_weight, reduction, None, n_threads
    )[0]


def distillation_loss_with_grad(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: float = 1.0,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, Array]:
    """`distillation_loss` and its gradient by the student's logits, ``T * (p - q)``.

    Parameters
    ----------
    student, teacher, temperature, axis, sample_weight, reduction, n_threads
        As in `distillation_loss`.
    upstream : float, or for ``reduction="none"`` an array of the rows' shape, optional
        Factor of the gradient, as in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 if student is float64 or of integers, else float32
        As `distillation_loss`.
    grad : array of the shape and dtype of student (float64 for integers)
        Of the reduced loss (for ``"none"``, of the sum).

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import fastce
    >>> loss, grad = fastce.distillation_loss_with_grad([[1.0, 0.0]], [[2.0, 0.0]], temperature=2.0)
    >>> print(grad.round(4))
    [[-0.2172  0.2172]]
    """
    loss, grad = _distill(
        True, student, teacher, temperature, axis, sample_weight, reduction, upstream, n_threads
    )
    assert grad is not None
    return loss, grad


@np.errstate(all="ignore")  # as the kernels: inf, NaN
def _distill(
    with_grad: bool,
    student: ArrayLike,
    teacher: ArrayLike,
    temperature: float,
    axis: int,
    sample_weight: ArrayLike | None,
    reduction: str,
    upstream: ArrayLike | None,
    n_threads: int | None,
) -> tuple[Any, Array | None]:
    s, t = _kernel.check_logits(student, "student"), _kernel.check_logits(teacher, "teacher")
    if t.shape != s.shape:
        raise ValueError(f"teacher must have the shape of student {s.shape}, got {t.shape}")
    T = _kernel.check_number(temperature, "temperature", 1e-30, True, 1e30)
    class_axis = _kernel.check_class_axis(axis, s, "student")
    _kernel.check_reduction(reduction)
    threads = _kernel.get_num_threads() if n_threads is None else _kernel.check_threads(n_threads)
    shape, n_classes = s.shape[:class_axis] + s.shape[class_axis + 1 :], s.shape[class_axis]
    n_rows = s.size // n_classes
    weights = np.ones(n_rows)
    if sample_weight is not None:
        weights = _kernel.check_weights(sample_weight, "sample_weight", shape).reshape(-1)
    divisor = 1.0
    if reduction == "mean":
        _kernel.check_weight_sum(weights)
        divisor = float(weights.sum())
    factors = _kernel.check_upstream(upstream, reduction == "none", shape).reshape(-1)
    factors = np.broadcast_to(factors / divisor, n_rows) * weights

    # a row of weight 0 is not there, whatever it holds
    s_rows = np.moveaxis(s, class_axis, -1).reshape(n_rows, n_classes)
    t_rows = np.moveaxis(t, class_axis, -1).reshape(n_rows, n_classes)
    losses = np.empty(n_rows)
    grad = np.empty(s_rows.shape, s.dtype) if with_grad else None
    is_half = with_grad and s.dtype.itemsize == 2  # the kernel writes floats and doubles
    step = max(1, BLOCK // n_classes)
    for start in range(0, n_rows, step):
        block = slice(start, start + step)
        there, slopes = weights[block] != 0, T * factors[block]
        s_block, t_block = _as_floats(s_rows[block]), _as_floats(t_rows[block])
        slope_block = None if grad is None else grad[block]
        if is_half:
            slope_block = np.empty(s_block.shape, np.float32)
        divergences = _kernel.distill(s_block, t_block, T, there, slopes, slope_block, threads)
        rare = divergences == -1
        if rare.any():
            divergences[rare], differences = _rare_rows(
                s_block[rare].astype(np.float64), t_block[rare].astype(np.float64), T, threads
            )
            if slope_block is not None:
                slope_block[rare] = slopes[rare, None] * differences
        losses[block] = T * T * weights[block] * divergences
        if grad is not None and is_half:
            grad[block] = slope_block

    real = np.float64 if s.dtype == np.float64 else np.float32
    loss: Any = real(losses.sum() / divisor) if divisor else real(np.nan)
    if reduction == "none":
        loss = losses.astype(real).reshape(shape)[()]
    if grad is None:
        return loss, None
    moved = np.moveaxis(s, class_axis, -1).shape
    return loss, np.ascontiguousarray(np.moveaxis(grad.reshape(moved), -1, class_axis))


def _as_floats(z: Array) -> Array:
    """float32 or float64, contiguous; halves are float32."""
    return np.ascontiguousarray(z, np.float64 if z.dtype == np.float64 else np.float32)


def _rare_rows(s: Array, t: Array, temperature: float, threads: int) -> tuple[Array, Array]:
    """KL(q || p) of rows and p - q, where a class is hidden by one of both, or far apart.

    Such classes have nothing to cancel, and are computed from the logarithms of p and q; the others
    as in the kernel, from the differences of logits. What those have in common, the logarithm of 1
    + excess, takes what both kinds have of p and of q.
    """
    log_p, log_q = (
        log_softmax((z - z.max(axis=1, keepdims=True)) / temperature, n_threads=threads)
        for z in (s, t)
    )
    p, q = np.exp(log_p), np.exp(log_q)
    u = t - s
    back = u - t
    lost = (t - (u - back)) - (s + back)
    top = p.argmax(axis=1)[:, None]
    u, lost = (x - np.take_along_axis(x, top, axis=1) for x in (u, lost))
    v = (u + lost) / temperature
    near = (abs(v) < 500) & (p > 0) & (q > 0)
    m = np.expm1(np.where(near, v, 0))
    far_p, far_q = (np.where(near, 0, x).sum(axis=1, keepdims=True) for x in (p, q))
    near_p, near_q = (np.where(near, x, 0).sum(axis=1, keepdims=True) for x in (p, q))
    grown = (p * m).sum(axis=1, keepdims=True)
    excess = (grown - far_p + far_q) / near_q
    whole = (near_p + grown) / near_q  # 1 + excess where that cancels, for p is elsewhere
    cancels = excess < -0.5
    excess = np.where(cancels, whole - 1, excess)
    whole = np.where(cancels, whole, 1 + excess)
    near &= excess < 1e300  # else those near are of no weight in q
    d = np.where(near, v - np.where(cancels, np.log(whole), np.log1p(excess)), log_q - log_p)
    differences = np.where(near, p * ((excess - m) / whole), p - q)
    series = np.full_like(d, 1 / math.factorial(10))
    for k in range(9, 1, -1):
        series = 1 / math.factorial(k) - d * series
    terms = np.where(abs(d) < 0.1, q * d * d * series, q * d + differences)
    return np.where(q == 0, p, terms).sum(axis=1), differences  # 0 log 0 = 0
