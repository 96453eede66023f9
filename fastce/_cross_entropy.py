# cython: language_level=3, annotation_typing=False, freethreading_compatible=True
"""Softmax cross-entropy: signatures and what they promise; arguments are checked in _kernel.pyx.

Compiled by setup.py for the sake of small calls, and plain Python for everybody else.
"""

from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray

from fastce._kernel import CROSS_ENTROPY, softmax_loss

Reduction = Literal["none", "sum", "mean"]
OnEmpty = Literal["nan", "zero", "raise"]


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    n_threads: int | None = None,
) -> Any:
    """Softmax cross-entropy of logits against class indices or probabilities.

    A row's loss is ``-sum(q * log(softmax(z)))``, computed as ``(max - z_y) + log1p(sum of the
    other exponentials)``, the form that keeps small losses exact (Blanchard, Higham and Higham, IMA
    J. Numer. Anal. 2021, section 4). ``z`` are the logits after scale and cap, ``q`` the target
    distribution after smoothing and weights. The formulas of every option are in docs/options.md.

    Parameters
    ----------
    logits : array with a class axis
        Unnormalised scores, float16, bfloat16 (ml_dtypes), float32 or float64, of any strides;
        unaligned or byte-swapped ones are copied. ``-inf`` masks a class. Integers and lists become
        float64.
    targets : integers of the rows' shape, or floats of the logits' shape
        The class of each row, in ``[0, n_classes)`` or `ignore_index`, of any integer dtype; or
        probabilities, whose rows need not sum to one. The rows' shape is that of the logits
        without the class axis.
    axis : int, default -1
        The class axis; 1 for ``(N, C, d1, ..., dK)``.
    class_weight : array of shape (n_classes,), optional
        Factor of each class's part of the loss, finite and 0 or more.
    sample_weight : array of the rows' shape, optional
        Factor of each row, finite and 0 or more. A row of weight 0 is not there, as if ignored. For
        a mean the weights' sum is 0 or at least 1e-300.
    ignore_index : int or None, default -100
        Rows with this target count for nothing: loss 0, gradient 0, whatever they hold.
    where : bool array of the rows' or of the logits' shape, optional
        Of the rows' shape: the rows to keep; labels are checked in all. Of the logits' shape: the
        classes to keep; one that is hidden equals one at ``-inf``, and a row with none left is not
        there.
    label_smoothing : float, default 0.0
        In [0, 1]: this part of each row's target goes to all classes that no mask hides, evenly.
    logit_scale : float, default 1.0
        ``z = logit_scale * logits``: one over the temperature. From 1e-30 to 1e30.
    softcap : float, optional
        ``z = softcap * tanh(logit_scale * logits / softcap)``, as in Gemma 2. From 1e-30 to 1e30.
    z_loss : float, default 0.0
        0 or more: adds ``z_loss * logsumexp(z)**2`` to each row, times its sample weight (as in
        PaLM).
    reduction : {"none", "sum", "mean"}, default "mean"
        ``"mean"`` divides by the sum of ``sample_weight * class_weight[target]`` over the rows
        kept, as PyTorch does; for probabilities by the sum of ``sample_weight``.
    normalizer : float, optional
        Replaces that divisor: the count over all parts of an accumulated gradient, say. From 1e-300
        to 1e300, and with "mean" only.
    on_empty : {"nan", "zero", "raise"}, default "nan"
        What the mean is when no weight is left. PyTorch's is NaN.
    n_threads : int, optional
        From 1 to 65536, of which 256 are used at most; default `get_num_threads`. Small calls use
        fewer. The result is the same, bit for bit, for any number.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        A scalar, or for ``"none"`` an array of the rows' shape.

    Raises
    ------
    ValueError
        If a shape or a value does not fit; a target out of range is named by its position.
    TypeError
        If an argument is of the wrong kind.
    MemoryError
        If there is no room for some rows of ``n_classes`` a thread.

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

    Images of shape (N, C, H, W) with a label for each pixel:

    >>> logits = np.zeros((2, 21, 4, 4), np.float32)
    >>> labels = np.zeros((2, 4, 4), np.uint8)
    >>> print(f"{fastce.cross_entropy(logits, labels, axis=1, ignore_index=255):.4f}")
    3.0445
    """
    return softmax_loss(
        CROSS_ENTROPY, 0.0, 0.0, 1, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, label_smoothing, logit_scale, softcap, z_loss, reduction, normalizer,
        on_empty, None, None, n_threads,
    )  # fmt: skip


def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any]]:
    """Softmax cross-entropy and its gradient with respect to the logits, in one pass.

    For class indices ``grad = w * (softmax(z) - onehot)``, where the target's element is computed
    as minus the sum of the other probabilities, so that it is exact where that of the target is
    near 1.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, where, label_smoothing, \
    logit_scale, softcap, z_loss, reduction, normalizer, on_empty, n_threads
        As in `cross_entropy`.
    out : array of the logits' shape, optional
        The buffer for the gradient, of any of the logits' dtypes, whatever theirs is, and of any
        strides, but aligned and of native byte order. May be `logits` itself, which is then
        overwritten; any other overlap with an input is refused.
    upstream : float, or for ``reduction="none"`` an array of the rows' shape, optional
        Factor of the gradient: what the loss is multiplied by further on (the chain rule).

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `cross_entropy`.
    grad : array of the logits' shape
        The gradient of the reduced loss (for ``"none"``, of the sum), of the logits' dtype, or
        `out`. For half-precision logits it is computed as for float32 ones and rounded once, on the
        way out; a float32 or float64 `out` holds it to float32's accuracy.

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
    result: tuple[Any, NDArray[Any]] = softmax_loss(
        CROSS_ENTROPY, 0.0, 0.0, 2, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, label_smoothing, logit_scale, softcap, z_loss, reduction, normalizer,
        on_empty, out, upstream, n_threads,
    )  # fmt: skip
    return result


def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    on_empty: OnEmpty = "nan",
    out: NDArray[Any] | None = None,
    upstream: ArrayLike | None = None,
    n_threads: int | None = None,
) -> tuple[Any, NDArray[Any], NDArray[Any]]:
    """Softmax cross-entropy, its gradient and the diagonal of its Hessian, for boosting and Newton.

    Parameters
    ----------
    logits, targets, axis, class_weight, sample_weight, ignore_index, where, label_smoothing, \
    logit_scale, softcap, z_loss, reduction, normalizer, on_empty, out, upstream, n_threads
        As in `cross_entropy_with_grad`.

    Returns
    -------
    loss : float64 for float64 logits, else float32
        As `cross_entropy`.
    grad : array of the logits' shape
        As `cross_entropy_with_grad`.
    hess_diag : array of the logits' shape and of the dtype of grad
        The second derivative of the returned loss by each logit; without options
        ``w * p * (1 - p)``, right also where ``p`` is near 1.

    Raises
    ------
    ValueError, TypeError
        As `cross_entropy`; nothing has been written then.

    Examples
    --------
    >>> import fastce
    >>> loss, grad, hess = fastce.cross_entropy_with_grad_hess([[0.0, 0.0]], [1])
    >>> print(grad, hess)
    [[ 0.5 -0.5]] [[0.25 0.25]]
    """
    result: tuple[Any, NDArray[Any], NDArray[Any]] = softmax_loss(
        CROSS_ENTROPY, 0.0, 0.0, 3, logits, targets, axis, class_weight, sample_weight,
        ignore_index, where, label_smoothing, logit_scale, softcap, z_loss, reduction, normalizer,
        on_empty, out, upstream, n_threads,
    )  # fmt: skip
    return result
