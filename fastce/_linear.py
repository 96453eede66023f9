"""Losses of a matrix product that is never there as a whole: a block of rows of logits at a time.

The products are NumPy's, the loss of a block is that of _cross_entropy.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernel
from fastce._cross_entropy import OnEmpty, Reduction, cross_entropy, cross_entropy_with_grad

Array = NDArray[Any]

# Logits at a time: 64 MB of float32, 128 of float64. Each block reads the whole weight once more
# and adds to its gradient: 1.13 of the time of all logits at once, blocks of 32 MB 1.20, of 128 MB
# 1.06 (4096 rows, 32,000 classes, 512 features, Zen 5).
BLOCK = 1 << 24
# Elements of a weight's gradient that are added to at a time, or of rows that are normalised: not
# another copy of all.
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
    """Cross-entropy of ``hidden @ weight.T + bias``, made a block of rows at a time.

    No more than 16 million logits are in memory, where those of a language model's last layer are
    larger than all else. The products are NumPy's, in float64 if hidden, weight or bias is float64
    or of integers, else in float32; their roundings, which may differ between blocks of different
    sizes, are those of its BLAS.

    Parameters
    ----------
    hidden : array of shape (..., n_features)
        The rows, of real numbers.
    weight : array of shape (n_classes, n_features)
        As PyTorch's ``Linear`` has it. Converted as a whole where the products have another dtype.
        A class is hidden by a bias of -inf, not by infinite weights, whose gradients are NaN.
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
    Oord, Li and Vinyals 2018, equation 4; CLIP's, of as many keys as queries, is the mean of this
    and of the call with both exchanged). Similarities are made a block of rows at a time, as in
    `linear_cross_entropy`; with `normalize` there are copies of queries and keys.

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


@np.errstate(all="ignore")  # as the kernels: inf, NaN
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
    options: dict[str, Any] = {
        "logit_scale": min(max(scale, 1e-30), 1e30),
        "reduction": reduction,
        "ignore_index": None,
        "n_threads": n_threads,
    }
    dtype = _product_dtype(q, k)
    units = [_normalized(rows, dtype) for rows in (q, k)] if normalize else []
    q_rows, k_rows = (unit.rows for unit in units) if normalize else (q, k)
    own = np.arange(len(q))
    if not with_grad:
        return linear_cross_entropy(q_rows, k_rows, own, **options), None
    loss, grads = linear_cross_entropy_with_grad(q_rows, k_rows, own, upstream=upstream, **options)
    if not normalize:
        return loss, InfoNCEGradients(grads.hidden, grads.weight)
    return loss, InfoNCEGradients(
        _through_normalization(grads.hidden, units[0], q.dtype),
        _through_normalization(grads.weight, units[1], k.dtype),
    )


class _Units(NamedTuple):
    """Rows over their lengths, which are norms * 2**powers: neither over- nor underflows."""

    rows: Array
    norms: Array
    powers: Array


def _row_blocks(rows: Array) -> list[slice]:
    """Some rows at a time, whose copies in float64 stay small."""
    step = max(1, SLICE // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _normalized(rows: Array, dtype: Any) -> _Units:
    units = _Units(np.empty(rows.shape, dtype), np.empty(len(rows)), np.empty(len(rows), np.intc))
    for block in _row_blocks(rows):
        wide = rows[block].astype(np.float64)
        units.powers[block] = np.frexp(abs(wide).max(axis=1))[1]
        wide = np.ldexp(wide, -units.powers[block, None])
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        units.norms[block] = norms
        units.rows[block] = np.where(norms[:, None] == 0, 0, wide / norms[:, None])
    return units


def _through_normalization(grad: Array, units: _Units, dtype: Any) -> Array:
    """The gradient by rows from that by their unit vectors: its part across them, over the lengths,
    as a step along a row leaves its unit vector as it is."""
    result = np.empty(grad.shape, dtype)
    for block in _row_blocks(grad):
        wide, norms = units.rows[block].astype(np.float64), units.norms[block, None]
        along = np.einsum("ij,ij->i", wide, grad[block])
        across = (grad[block] - wide * along[:, None]) / norms
        result[block] = np.ldexp(np.where(norms == 0, 0, across), -units.powers[block, None])
    return result


def _product_dtype(*arrays: Array | None) -> Any:
    """What products of them are computed in."""
    wide = any(array is not None and array.dtype == np.float64 for array in arrays)
    return np.float64 if wide else np.float32


@np.errstate(all="ignore")  # as the kernels: inf, NaN
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
    shape, dtype = h.shape[:-1], _product_dtype(h, w, b)
    options: dict[str, Any] = {
        "class_weight": class_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "logit_scale": logit_scale,
        "softcap": softcap,
        "z_loss": z_loss,
        "reduction": reduction,
        "normalizer": normalizer,
        "n_threads": n_threads,
    }
    # All that a call checks is checked before the first product: by one of no rows.
    must_have_rows = isinstance(on_empty, str) and on_empty == "raise"
    no_rows = np.empty((0, len(w)), dtype), np.empty(0, np.int64)
    cross_entropy(*no_rows, on_empty="nan" if must_have_rows else on_empty, **options)
    factors = _kernel.check_upstream(upstream, reduction == "none", shape)
    y, weights, weight_sum = _kernel.check_rows(
        shape, len(w), targets, class_weight, sample_weight, ignore_index,
        reduction == "mean" and normalizer is None,
    )  # fmt: skip
    if reduction == "mean" and normalizer is None and weight_sum > 0:
        if weight_sum > 1e300:  # as a normalizer may be
            raise ValueError(f"the sum of weights must be 1e300 at most, got {weight_sum}")
        options["normalizer"] = weight_sum
    is_empty = reduction == "mean" and options["normalizer"] is None
    if is_empty and on_empty == "raise":
        raise ValueError(
            "on_empty is 'raise', and the mean is over no row: all are ignored or of weight 0"
        )
    if is_empty and on_empty == "zero":
        grads = LinearGradients(
            np.zeros(h.shape, h.dtype),
            np.zeros(w.shape, w.dtype),
            None if b is None else np.zeros(b.shape, b.dtype),
        )
        return dtype(0), grads if with_grad else None

    y = y.reshape(-1)
    there = np.ones(y.shape, bool)
    if ignore_index is not None:
        there = y != _kernel.check_index(ignore_index, "ignore_index")
    if weights is not None:
        weights = weights.reshape(-1)
        there &= weights != 0
    losses, hidden_grad, weight_grad, bias_grad = _by_blocks(
        with_grad,
        h.reshape(-1, h.shape[-1]),
        w.astype(dtype, copy=False),
        None if b is None else b.astype(dtype, copy=False),
        y,
        weights,
        there,
        factors.reshape(-1) if factors.ndim else factors,
        options,
    )
    if reduction == "none":
        loss: Any = losses.reshape(shape)[()]
    else:
        loss = dtype(np.nan if is_empty else losses.sum())
    if hidden_grad is None:
        return loss, None
    return loss, LinearGradients(
        hidden_grad.reshape(h.shape),
        weight_grad.astype(w.dtype, copy=False),
        None if b is None else bias_grad.astype(b.dtype),
    )


def _by_blocks(
    with_grad: bool,
    rows: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    sample_weight: Array | None,
    there: Array,
    upstream: Array,
    options: dict[str, Any],
) -> tuple[Array, Array | None, Array, Array]:
    """Losses, of rows or, where they are reduced, of blocks in float64; and the gradients."""
    n_classes, dtype = len(weight), weight.dtype
    step = max(1, min(len(rows), BLOCK // n_classes))
    starts = range(0, len(rows), step)
    logits = np.empty((step, n_classes), dtype)
    each = options["reduction"] == "none"
    losses = np.empty(len(rows), dtype) if each else np.empty(len(starts))
    hidden_grad = np.empty(rows.shape, rows.dtype) if with_grad else None
    weight_grad, bias_grad = (
        np.zeros(weight.shape if with_grad else (0, 0), dtype),
        np.zeros(n_classes),
    )
    for i, start in enumerate(starts):
        block = slice(start, start + step)
        x, is_there = rows[block].astype(dtype, copy=False), there[block, None]
        if not is_there.all():  # whatever a row holds that is not there, even NaN
            x = np.where(is_there, x, dtype.type(0))
        z = logits[: len(x)]
        np.matmul(x, weight.T, out=z)
        if bias is not None:
            z += bias
        some: dict[str, Any] = {
            **options,
            "sample_weight": None if sample_weight is None else sample_weight[block],
        }
        at = block if each else i
        if hidden_grad is None:
            losses[at] = cross_entropy(z, targets[block], **some)
            continue
        losses[at], _ = cross_entropy_with_grad(
            z,
            targets[block],
            out=z,
            upstream=upstream[block] if upstream.ndim else upstream,
            **some,
        )
        hidden_grad[block] = np.where(is_there, z @ weight, 0)
        _add_product(z, x, weight_grad)
        bias_grad += z.sum(axis=0, dtype=np.float64)
    return losses, hidden_grad, weight_grad, bias_grad


def _add_product(z: Array, x: Array, total: Array) -> None:
    """Add z.T @ x to total, some classes at a time."""
    step = max(1, SLICE // x.shape[1])
    for start in range(0, len(total), step):
        some = slice(start, start + step)
        total[some] += z[:, some].T @ x
