"""Losses of a matrix product that is never there as a whole: a block of rows of logits at a time.

The products are NumPy's, the loss of a block is that of _cross_entropy.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernel
from fastce._cross_entropy import OnEmpty, Reduction, cross_entropy, cross_entropy_with_grad

Array = NDArray[Any]

# Logits at a time: 64 MB of float32. Each block reads the whole weight once more and adds to its
# gradient: 1.13 of the time of all logits at once, blocks of 32 MB 1.20, of 128 MB 1.06 (4096 rows,
# 32,000 classes, 512 features, Zen 5).
BLOCK = 1 << 24
# Elements of the weight's gradient that are added to at a time: 4 MB, not another weight.
SLICE = 1 << 20


class LinearGradients(NamedTuple):
    """Gradients of `linear_cross_entropy`, each of the shape and dtype of its argument."""

    hidden: Array
    weight: Array
    bias: Array | None


class InfoNCEGradients(NamedTuple):
    """Gradients of `info_nce`, each of the shape and dtype of its argument."""

    queries: Array
    keys: Array


def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Cross-entropy of ``hidden @ weight.T + bias``, whose logits are never all in memory.

    `cross_entropy` of a block of rows after the other, 64 MB of logits at a time: what a language
    model's last layer needs, whose logits are larger than all else. The products are NumPy's, in
    float64 if an argument is, else in float32, and their roundings are those of its BLAS.

    Parameters
    ----------
    hidden : array of shape (..., n_features)
        The rows, of real numbers.
    weight : array of shape (n_classes, n_features)
        As PyTorch's ``Linear`` has it. Halves are converted as a whole: 4 bytes an element.
    targets : integers of shape (...)
        The class of each row, in ``[0, n_classes)`` or `ignore_index`.
    bias : array of shape (n_classes,), optional
    class_weight, sample_weight, ignore_index, label_smoothing, logit_scale, softcap, z_loss, \
    reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`. `n_threads` is that of the loss; NumPy's BLAS has its own.

    Returns
    -------
    loss : float64 if hidden, weight or bias is float64 or of integers, else float32
        As `cross_entropy`.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> hidden = [[1.0, 0.0], [0.0, 1.0]]
    >>> weight = [[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]
    >>> print(f"{fastce.linear_cross_entropy(hidden, weight, [0, 1]):.4f}")
    1.2395
    """
    return _linear(
        False, hidden, weight, targets, bias, class_weight, sample_weight, ignore_index,
        label_smoothing, logit_scale, softcap, z_loss, reduction, normalizer, on_empty, None,
        n_threads,
    )[0]  # fmt: skip


def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, LinearGradients]:
    """`linear_cross_entropy` and its gradients by hidden, weight and bias.

    Parameters
    ----------
    hidden, weight, targets, bias, class_weight, sample_weight, ignore_index, label_smoothing, \
    logit_scale, softcap, z_loss, reduction, normalizer, on_empty, n_threads
        As in `linear_cross_entropy`.
    upstream : float, or for ``reduction="none"`` an array of the rows' shape, optional
        Factor of the gradients, as in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 if hidden, weight or bias is float64 or of integers, else float32
        As `linear_cross_entropy`.
    grads : named tuple of arrays (hidden, weight, bias)
        Of the reduced loss (for ``"none"``, of the sum), each of the shape and dtype of its
        argument (float64 for integers); ``grads.bias`` is None without a bias.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`.

    Examples
    --------
    >>> import fastce
    >>> hidden = [[1.0, 0.0], [0.0, 1.0]]
    >>> weight = [[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]
    >>> loss, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, [0, 1])
    >>> print(grads.hidden.round(4))
    [[-0.213   0.1065]
     [ 0.1065  0.787 ]]
    >>> grads.weight.shape, grads.bias
    ((3, 2), None)
    """
    loss, grads = _linear(
        True, hidden, weight, targets, bias, class_weight, sample_weight, ignore_index,
        label_smoothing, logit_scale, softcap, z_loss, reduction, normalizer, on_empty, upstream,
        n_threads,
    )  # fmt: skip
    assert grads is not None
    return loss, grads


def info_nce(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: float = 0.07,
    normalize: bool = True,
    reduction: Reduction = "mean",
    n_threads: int | None = None,
) -> Any:
    """The contrastive loss of pairs: each query is to find its key among all of them.

    Row i's loss is the cross-entropy of ``queries[i] @ keys.T / temperature`` with class i (van den
    Oord, Li and Vinyals 2018, equation 4; CLIP's with both orders is the mean of two calls). Of
    the similarities only a block of rows is in memory, as in `linear_cross_entropy`.

    Parameters
    ----------
    queries : array of shape (n, n_features)
    keys : array of shape (m, n_features), m at least n
        ``keys[i]`` belongs to ``queries[i]``; those from n on belong to none.
    temperature : float, default 0.07
        What similarities are divided by. From 1e-30 to 1e30.
    normalize : bool, default True
        Whether similarities are cosines; else they are inner products. A row of zeros stays one,
        and has no gradient.
    reduction : {"none", "sum", "mean"}, default "mean"
    n_threads : int, optional
        As in `cross_entropy`.

    Returns
    -------
    loss : float64 if queries or keys are float64 or integers, else float32
        A scalar, or for ``"none"`` an array of shape (n,).

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import fastce
    >>> pairs = [[1.0, 0.0], [0.0, 1.0]]
    >>> print(f"{fastce.info_nce(pairs, pairs, temperature=0.5):.4f}")
    0.1269
    """
    return _info_nce(False, queries, keys, temperature, normalize, reduction, None, n_threads)[0]


def info_nce_with_grad(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: float = 0.07,
    normalize: bool = True,
    reduction: Reduction = "mean",
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, InfoNCEGradients]:
    """`info_nce` and its gradients by queries and keys.

    Parameters
    ----------
    queries, keys, temperature, normalize, reduction, n_threads
        As in `info_nce`.
    upstream : float, or for ``reduction="none"`` an array of shape (n,), optional
        Factor of the gradients, as in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 if queries or keys are float64 or integers, else float32
        As `info_nce`.
    grads : named tuple of arrays (queries, keys)
        Each of the shape and dtype of its argument (float64 for integers).

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import fastce
    >>> pairs = [[1.0, 0.0], [0.0, 1.0]]
    >>> loss, grads = fastce.info_nce_with_grad(pairs, pairs, temperature=0.5)
    >>> print(grads.queries.round(4))  # towards the own key, away from the other one
    [[0.     0.1192]
     [0.1192 0.    ]]
    """
    loss, grads = _info_nce(
        True, queries, keys, temperature, normalize, reduction, upstream, n_threads
    )
    assert grads is not None
    return loss, grads


def _info_nce(
    with_grad: bool,
    queries: ArrayLike,
    keys: ArrayLike,
    temperature: float,
    normalize: bool,
    reduction: Reduction,
    upstream: ArrayLike | None,
    n_threads: int | None,
) -> tuple[Any, InfoNCEGradients | None]:
    q, k = _kernel.check_logits(queries, "queries"), _kernel.check_logits(keys, "keys")
    if q.ndim != 2 or q.shape[1] == 0:
        raise ValueError(f"queries must have shape (n, n_features), got {q.shape}")
    if k.ndim != 2 or k.shape[1] != q.shape[1] or len(k) < max(len(q), 1):
        raise ValueError(
            f"keys must have shape (m, {q.shape[1]}), m at least {max(len(q), 1)}, got {k.shape}"
        )
    if not isinstance(normalize, (bool, np.bool_)):
        raise TypeError(f"normalize must be a bool, got {type(normalize).__name__}")
    scale = 1 / _kernel.check_number(temperature, "temperature", 1e-30, True, 1e30)
    units, inverses = [q, k], []
    if normalize:
        for i, rows in enumerate((q, k)):
            wide = rows.astype(np.float64)
            norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
            inverses.append(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0))
            units[i] = (wide * inverses[i][:, None]).astype(_real_of(q, k))
    loss, grads = _linear(
        with_grad, units[0], units[1], np.arange(len(q)), None, None, None, None, 0.0, scale, None,
        0.0, reduction, None, "nan", upstream, n_threads,
    )  # fmt: skip
    if grads is None:
        return loss, None
    slopes = [grads.hidden, grads.weight]
    for i, inverse in enumerate(inverses):  # what a step along the row itself changes: nothing
        along = np.einsum("ij,ij->i", units[i], slopes[i], dtype=np.float64)
        slopes[i] = (slopes[i] - units[i] * along[:, None]) * inverse[:, None]
    q_grad, k_grad = (
        slope.astype(rows.dtype, copy=False) for slope, rows in zip(slopes, (q, k), strict=True)
    )
    return loss, InfoNCEGradients(q_grad, k_grad)


def _real_of(*arrays: Array) -> Any:
    """What products of them are computed in."""
    return np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32


def _linear(
    with_grad: bool,
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    bias: ArrayLike | None,
    class_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int | None,
    label_smoothing: float,
    logit_scale: float,
    softcap: float | None,
    z_loss: float,
    reduction: Reduction,
    normalizer: float | None,
    on_empty: OnEmpty,
    upstream: ArrayLike | None,
    n_threads: int | None,
) -> tuple[Any, LinearGradients | None]:
    h, w = _kernel.check_logits(hidden, "hidden"), _kernel.check_logits(weight, "weight")
    if h.ndim == 0 or h.shape[-1] == 0:
        raise ValueError(f"hidden must have shape (..., n_features), got {h.shape}")
    if w.ndim != 2 or w.shape[1] != h.shape[-1] or len(w) == 0:
        raise ValueError(f"weight must have shape (n_classes, {h.shape[-1]}), got {w.shape}")
    b = None if bias is None else _kernel.check_logits(bias, "bias")
    if b is not None and b.shape != (len(w),):
        raise ValueError(f"bias must have shape ({len(w)},), got {b.shape}")
    n_classes, shape = len(w), h.shape[:-1]
    real = _real_of(h, w) if b is None else _real_of(h, w, b)

    # -- everything is checked before the first product
    options: dict[str, Any] = {
        "class_weight": class_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "z_loss": z_loss,
        "n_threads": n_threads,
    }
    no_rows = (np.empty((0, n_classes), real), np.empty(0, np.int64))
    if_empty: OnEmpty = "nan" if on_empty == "raise" else on_empty
    cross_entropy(
        *no_rows, reduction=reduction, normalizer=normalizer, on_empty=if_empty, **options
    )
    is_mean = reduction == "mean"
    y, weights, weight_sum = _kernel.check_rows(
        shape, n_classes, targets, class_weight, sample_weight, ignore_index,
        is_mean and normalizer is None,
    )  # fmt: skip
    divisor = 1.0
    if is_mean:
        divisor = weight_sum if normalizer is None else float(normalizer)
        if divisor == 0 and on_empty == "raise":
            raise ValueError(
                "on_empty is 'raise', and the mean is over no row: all are ignored or of weight 0"
            )
    factors = _kernel.check_upstream(upstream, reduction == "none", shape) / (divisor or np.inf)
    factors = factors.reshape(-1) if factors.ndim else factors
    if divisor == 0 and on_empty == "nan":
        factors = factors + np.nan

    # -- a block of rows at a time
    rows, y = h.reshape(-1, h.shape[-1]), y.reshape(-1)
    there = np.ones(len(rows), bool) if ignore_index is None else y != ignore_index
    if weights is not None:
        weights = weights.reshape(-1)
        there &= weights != 0
    matrix = w.astype(real, copy=False)
    offset = None if b is None else b.astype(real)
    step = max(1, min(len(rows), BLOCK // n_classes))
    logits = np.empty((step, n_classes), real)
    losses = np.empty(len(rows), real)
    hidden_grad = np.empty(rows.shape, h.dtype) if with_grad else None
    weight_grad, bias_grad = np.zeros((0, 0), real), np.zeros(n_classes)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        x = rows[block].astype(real, copy=False)
        if not there[block].all():  # whatever a row holds that is not there, even NaN
            x = np.where(there[block, None], x, real(0))
        z = logits[: len(x)]
        np.matmul(x, matrix.T, out=z)
        if offset is not None:
            z += offset
        options["sample_weight"] = None if weights is None else weights[block]
        if hidden_grad is None:
            losses[block] = cross_entropy(z, y[block], reduction="none", **options)
            continue
        losses[block], _ = cross_entropy_with_grad(
            z,
            y[block],
            reduction="none",
            upstream=factors[block] if factors.ndim else factors,
            out=z,
            **options,
        )
        hidden_grad[block] = z @ matrix
        weight_grad = _add_product(weight_grad, z, x)
        bias_grad += z.sum(axis=0, dtype=np.float64)

    loss: Any = losses.reshape(shape) if shape else losses[0]
    if reduction == "sum" or (is_mean and divisor != 0):
        loss = real(losses.sum(dtype=np.float64) / divisor)
    elif is_mean:
        loss = real(0 if on_empty == "zero" else np.nan)
    if hidden_grad is None:
        return loss, None
    if not weight_grad.size:
        weight_grad = np.zeros(w.shape, real)
    return loss, LinearGradients(
        hidden_grad.reshape(h.shape),
        weight_grad.astype(w.dtype, copy=False),
        None if b is None else bias_grad.astype(b.dtype),
    )


def _add_product(total: Array, z: Array, x: Array) -> Array:
    """total + z.T @ x, in its place; total is empty at first."""
    if not total.size:
        first: Array = np.matmul(z.T, x)
        return first
    step = max(1, SLICE // x.shape[1])
    for start in range(0, len(total), step):
        some = slice(start, start + step)
        total[some] += z[:, some].T @ x
    return total
