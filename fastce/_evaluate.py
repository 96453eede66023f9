"""evaluate: how good predictions are, from one pass over the logits.

The kernel gives each row's loss, entropy, confidence and rank; they are summed up here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastce import _kernel

N_BINS = 15  # of the calibration error: Guo et al. 2017, section 2; also torchmetrics' default


@dataclass(frozen=True, eq=False)
class PerClass:
    """Figures of the rows of each true class, arrays of shape (n_classes,): how many rows, their
    mean loss in nats and the share predicted rightly; those two are NaN where there are none."""

    count: NDArray[np.int64]
    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found; ``print`` shows it.

    Losses and entropy are means over rows, in nats; accuracies, the calibration error ``ece`` and
    ``top_k_accuracy`` are shares from 0 to 1; ``n_valid`` counts the rows that were there.

    Examples
    --------
    >>> import fastce
    >>> print(fastce.evaluate([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1], top_k=1))
    rows            3
    loss            1.1629
    accuracy        0.6667
    top-1 accuracy  0.6667
    perplexity      3.1993
    entropy         0.3795
    ECE             0.4469
    class    count     loss  accuracy
        0        1   0.1269    1.0000
        1        2   1.6809    0.5000
    """

    loss: float
    accuracy: float
    top_k_accuracy: float
    perplexity: float
    entropy: float
    ece: float
    n_valid: int
    per_class: PerClass
    top_k: int

    def __str__(self) -> str:
        lines = [
            f"rows            {self.n_valid}",
            f"loss            {self.loss:.4f}",
            f"accuracy        {self.accuracy:.4f}",
            f"top-{self.top_k} accuracy".ljust(16) + f"{self.top_k_accuracy:.4f}",
            f"perplexity      {self.perplexity:.4f}",
            f"entropy         {self.entropy:.4f}",
            f"ECE             {self.ece:.4f}",
        ]
        if len(self.per_class.count) <= 100:
            lines.append("class    count     loss  accuracy")
            rows = zip(
                self.per_class.count, self.per_class.loss, self.per_class.accuracy, strict=True
            )
            lines += [f"{c:5d} {n:8d} {x:8.4f} {a:9.4f}" for c, (n, x, a) in enumerate(rows)]
        return "\n".join(lines)


def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    top_k: int = 5,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    n_threads: int | None = None,
) -> Evaluation:
    """Loss, accuracy, perplexity, entropy, calibration and figures per class, in one pass.

    Parameters
    ----------
    logits, targets, axis, ignore_index, n_threads
        As in `cross_entropy`; targets are class indices.
    top_k : int, default 5
        A row is right for `top_k_accuracy` if its target is among the `top_k` largest logits; of
        equal logits the lower class comes first, as in ``argmax``.
    sample_weight : array of the rows' shape, optional
        Weight of each row in every mean, 0 or more. A row of weight 0 is not counted.

    Returns
    -------
    Evaluation
        ``loss``, ``accuracy``, ``top_k_accuracy``, ``perplexity`` (``exp(loss)``), ``entropy``
        (mean, in nats), ``ece`` (expected calibration error of the top class, 15 equal bins; Guo
        et al. 2017), ``n_valid`` (rows counted) and ``per_class`` (``count``, ``loss``,
        ``accuracy`` by true class). Means over no row are NaN.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.

    Examples
    --------
    >>> import fastce
    >>> result = fastce.evaluate([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1], top_k=1)
    >>> print(f"{result.accuracy:.3f} {result.loss:.3f} {result.n_valid}")
    0.667 1.163 3
    """
    top_k = _kernel.check_index(top_k, "top_k")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {_kernel.shown(top_k)}")
    stats = _kernel.evaluate(logits, targets, axis, ignore_index, n_threads)
    labels = np.asarray(targets)
    weight = np.ones(len(stats))
    if sample_weight is not None:
        weight = _kernel.check_weights(sample_weight, "sample_weight", labels.shape).reshape(-1)
        _kernel.check_weight_sum(weight)
    there = (stats["rank"] >= 0) & (weight > 0)
    classes = labels.reshape(-1)
    if not there.all():  # rarely: it takes as long as all the rest
        stats, weight, classes = stats[there], weight[there], classes[there]
    classes = classes.astype(np.int64)
    n_classes = np.shape(logits)[axis]
    right = stats["rank"] == 0

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
        return float((weight * values).sum() / weight.sum()) if len(weight) else float("nan")

    def per_class(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.bincount(classes, weights=weight * values, minlength=n_classes)
        return total.astype(np.float64)

    # a confidence of exactly k / 15 belongs to the bin that it closes; NaN makes the sum NaN anyway
    confidence = np.nan_to_num(stats["confidence"])
    bins = np.clip(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    with np.errstate(all="ignore"):
        gaps = np.bincount(bins, weights=weight * (right - stats["confidence"]), minlength=N_BINS)
        loss = mean(stats["loss"])
        total = per_class(np.ones(len(stats)))
        return Evaluation(
            loss=loss,
            accuracy=mean(right),
            top_k_accuracy=mean(stats["rank"] < min(top_k, n_classes)),
            perplexity=float(np.exp(loss)),
            entropy=mean(stats["entropy"]),
            ece=float(np.abs(gaps).sum() / weight.sum()) if len(weight) else float("nan"),
            n_valid=len(stats),
            per_class=PerClass(
                count=np.bincount(classes, minlength=n_classes),
                loss=per_class(stats["loss"]) / total,
                accuracy=per_class(right.astype(np.float64)) / total,
            ),
            top_k=top_k,
        )
