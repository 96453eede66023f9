"""MLPClassifier: scikit-learn's names around network.py and fastce's loss.

Runs in a folder, with checkpoints and metrics, are the business of run.py.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastce import Evaluation, cross_entropy_with_grad, evaluate, softmax
from fastce._kernel import adam_step, check_array, shown

from . import network
from .files import as_path, load_arrays, save_arrays

# Rows per forward pass outside of training: 784 + 128 floats each are 3.7 MB, about an L2 cache and
# some of L3, and 10 rows or 10,000 take no other path.
ROWS_AT_ONCE = 1024

N_MOMENTS = {"adam": 2, "sgd": 1}  # of sgd: the velocity
LEAST_FLOAT = float(np.finfo(np.float32).smallest_subnormal)
MOST_FLOAT = float(np.finfo(np.float32).max)
LEAST_EPSILON = 1e-15  # a second moment below FLT_MIN is 0 in csrc/optimizer.h: the first is 1e-18
MODEL_FORMAT = "fastce-mlp-1"

# What labels of dtype object may be, all of one kind; bools before the integers that they are too.
LABEL_KINDS = (str, bytes, (bool, np.bool_), numbers.Integral)


class NotFittedError(ValueError, AttributeError):
    """As scikit-learn's: for hasattr() a model that is not trained has no coefs_."""


class DivergedError(ValueError):
    """The loss or the weights stopped being finite: the learning rate is too large."""


class MLPClassifier:
    """
    A multi-layer perceptron for classification: ReLU layers, softmax, cross-entropy.

    Names and meaning are scikit-learn's. Everything is float32. The matrix products are NumPy's,
    and use as many threads as its BLAS is told to (``OPENBLAS_NUM_THREADS``); the loss and Adam
    are fastce's.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (128,)
        Units of each hidden layer; ``()`` is softmax regression.
    solver : {"adam", "sgd"}, default "adam"
        Adam as in PyTorch, with bias correction; or gradient descent with momentum.
    learning_rate_init : float, default 1e-3
        What each step of either solver is multiplied by; above 0.
    batch_size : int, default 64
        Rows per step; at most all rows are taken. The last batch of an epoch may be shorter.
    max_iter : int, default 10
        Epochs that `fit` trains. It never stops earlier.
    random_state : int or None, default 0
        The seed of the initial weights and of each epoch's shuffling. The same seed, data, machine
        and number of BLAS threads give the same bits. None: another seed for every fit.
    momentum : float in [0, 1), default 0.9
        For "sgd": velocity = momentum * velocity + gradient.
    beta_1, beta_2 : float in [0, 1), default 0.9 and 0.999
        For "adam": decay of the first and second moment.
    epsilon : float, default 1e-8
        For "adam": added to the root of the second moment; 1e-15 or more.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    n_features_in_ : int
    n_iter_ : int
        Epochs trained.
    loss_curve_ : list of float
        Mean training loss of each epoch, in nats, over the batches as they were met.
    coefs_, intercepts_ : lists of float32 arrays
        The layers' weights, (n_inputs, n_outputs), and biases, (n_outputs,).

    Examples
    --------
    >>> from fastce.mlp import MLPClassifier, load_mnist
    >>> X, y, X_test, y_test = load_mnist()
    >>> clf = MLPClassifier(hidden_layer_sizes=(32,), max_iter=3).fit(X, y)
    >>> clf.score(X_test, y_test) > 0.85
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (128,),
        *,
        solver: str = "adam",
        learning_rate_init: float = 1e-3,
        batch_size: int = 64,
        max_iter: int = 10,
        random_state: int | None = 0,
        momentum: float = 0.9,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.solver = solver
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.random_state = random_state
        self.momentum = momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn's clone() asks for them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> MLPClassifier:
        """Set arguments of the constructor; as there, training is what checks their values."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's pipelines and searches ask of an estimator, and nobody else."""
        sklearn: Any = importlib.import_module("sklearn.utils")
        return sklearn.Tags(
            estimator_type="classifier",
            target_tags=sklearn.TargetTags(required=True),
            classifier_tags=sklearn.ClassifierTags(),
        )

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={shown(value, repr)}"
            for name, value in self.get_params().items()
            if shown(value, repr) != shown(defaults[name].default, repr)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    # Training

    def fit(self, X: Any, y: Any) -> MLPClassifier:
        """
        Train from new weights for `max_iter` epochs.

        Parameters
        ----------
        X : array of shape (n, n_features)
            Finite numbers; converted to float32, and copied only if they are not that already.
        y : array of shape (n,)
            Integers, bools or strings; `classes_` are the different ones, sorted.

        Raises
        ------
        ValueError, TypeError
            Before the first step, for parameters, shapes and values that cannot be. During
            training only if the loss stops being finite: the learning rate is too large. The
            weights are lost then, and the model is as one that was never trained.
        """
        X, y = _as_inputs(X), _as_labels(y)
        classes = np.unique(y)
        targets = _encode(classes, y, len(X))
        self._begin(X.shape[1], classes)
        for _ in range(self.max_iter):
            self._train_epoch(X, targets)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> MLPClassifier:
        """
        Train for one epoch over X, going on from where the last one ended.

        Parameters
        ----------
        X, y : as for `fit`
        classes : array of shape (n_classes,), optional
            All the labels that later calls may bring; needed at the first call only, and there
            by default the labels of `y`.

        Raises
        ------
        ValueError, TypeError
            As `fit`; and for classes, layers, a solver or a number of features other than those of
            the first call. Other parameters may change between calls.
        """
        X, y = _as_inputs(X), _as_labels(y)
        if not hasattr(self, "classes_"):
            found = np.unique(y if classes is None else _as_labels(classes, "classes"))
            targets = _encode(found, y, len(X))
            self._begin(X.shape[1], found)
        else:
            if classes is not None:
                again = np.unique(_as_labels(classes, "classes"))
                if not np.array_equal(again, self.classes_):
                    raise ValueError(
                        f"classes: expected those of the first call, {self.classes_.tolist()}"
                    )
            if self._check_parameters() != tuple(self._sizes[1:-1]):
                raise ValueError(
                    "hidden_layer_sizes: expected that of the first call, "
                    f"{tuple(self._sizes[1:-1])}, got {self.hidden_layer_sizes}"
                )
            if len(self._moments) != N_MOMENTS[self.solver]:
                raise ValueError(f"solver: expected that of the first call, got {self.solver!r}")
            self._check_features(X)
            targets = _encode(self.classes_, y, len(X))
        self._train_epoch(X, targets)
        return self

    def _begin(self, n_features: int, classes: np.ndarray) -> None:
        """New weights and moments; all parameters are checked here. What fails changes nothing."""
        hidden = self._check_parameters()
        seed = np.random.SeedSequence().entropy if self.random_state is None else self.random_state
        sizes = (n_features, *hidden, len(classes))
        params = network.init_params(sizes, np.random.default_rng(seed))
        moments = np.zeros((N_MOMENTS[self.solver], params.size), np.float32)
        self._seed, self._params, self._moments = seed, params, moments
        self._n_steps = 0
        self._sizes = sizes
        self.n_features_in_ = n_features
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.classes_ = classes

    def _check_parameters(self) -> tuple[int, ...]:
        """The hidden layers as a tuple, after all parameters were found to be possible."""
        hidden = self.hidden_layer_sizes
        if isinstance(hidden, numbers.Integral):
            hidden = (hidden,)
        elif isinstance(hidden, (str, bytes)) or not isinstance(hidden, (Sequence, np.ndarray)):
            raise TypeError(
                f"hidden_layer_sizes: expected an integer or several, got {shown(hidden, repr)}"
            )
        for size in hidden:
            _check_integer("hidden_layer_sizes", size, 1)
            if size >= 2**31:
                raise ValueError(
                    f"hidden_layer_sizes: expected less than 2**31, got {shown(size, repr)}"
                )
        _check_integer("batch_size", self.batch_size, 1)
        _check_integer("max_iter", self.max_iter, 1)
        if self.random_state is not None:
            _check_integer("random_state", self.random_state, 0)
            if self.random_state >= 2**128:  # as many as NumPy's own seeds have
                raise ValueError(
                    f"random_state: expected less than 2**128, got {shown(self.random_state, repr)}"
                )
        if not isinstance(self.solver, str):
            raise TypeError(f"solver: expected a str, got {shown(self.solver, repr)}")
        if self.solver not in N_MOMENTS:
            raise ValueError(f'solver: expected "adam" or "sgd", got {self.solver!r}')
        value = _as_float("learning_rate_init", self.learning_rate_init)
        if not LEAST_FLOAT <= value <= MOST_FLOAT:
            raise ValueError(f"learning_rate_init: expected a finite float32 above 0, got {value}")
        value = _as_float("epsilon", self.epsilon)
        if not LEAST_EPSILON <= value <= MOST_FLOAT:
            raise ValueError(f"epsilon: expected a finite float32, 1e-15 or more, got {value}")
        for name in ("momentum", "beta_1", "beta_2"):
            value = _as_float(name, getattr(self, name))
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
        return tuple(int(size) for size in hidden)

    def _train_epoch(
        self, X: np.ndarray, targets: np.ndarray, on_batch: Callable[[int], object] | None = None
    ) -> float:
        """One epoch over checked data; `on_batch` hears the number of rows after each step."""
        n_rows = len(X)
        batch_size = min(int(self.batch_size), n_rows)  # of NumPy's small integers, sums overflow
        epoch = self.n_iter_ + 1
        # From the seed and the epoch alone: a resumed run needs no state of a generator.
        rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(epoch,)))
        order = rng.permutation(n_rows)
        targets = targets.take(order)

        # The epoch works on well placed copies. One that is interrupted has changed nothing.
        saved = (self._params, *self._moments)
        grad, *state = network.aligned_rows(1 + len(saved), self._params.size)
        for buffer, values in zip(state, saved, strict=True):
            buffer[...] = values
        params, *moments = state
        n_steps = self._n_steps
        layers = network.layer_views(params, self._sizes)
        grads = network.layer_views(grad, self._sizes)
        whole = network.make_scratch(self._sizes, batch_size)
        total_loss = 0.0
        # A learning rate too large overflows: that ends in one error below, not in warnings.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, n_rows, batch_size):
                rows = order[start : start + batch_size]
                n = len(rows)
                scratch = whole if n == batch_size else network.first_rows(whole, n)
                # mode="clip" writes into `out` directly; the default gathers into a copy first.
                X.take(rows, axis=0, out=scratch.activations[0], mode="clip")
                logits = network.forward(layers, scratch)
                loss, _ = cross_entropy_with_grad(
                    logits, targets[start : start + n], out=scratch.deltas[-1]
                )
                network.backward(layers, grads, scratch)
                n_steps += 1
                if self.solver == "adam":
                    adam_step(
                        params,
                        grad,
                        moments[0],
                        moments[1],
                        n_steps,
                        self.learning_rate_init,
                        self.beta_1,
                        self.beta_2,
                        self.epsilon,
                    )
                else:
                    network.sgd_step(
                        params, grad, moments[0], self.learning_rate_init, self.momentum
                    )
                total_loss += float(loss) * n
                if on_batch is not None:
                    on_batch(n)
        mean_loss = total_loss / n_rows
        if not (math.isfinite(mean_loss) and np.isfinite(params).all()):
            # no predictions from such weights
            del self.classes_, self.n_features_in_, self.n_iter_, self.loss_curve_
            raise DivergedError(
                f"learning_rate_init: {self.learning_rate_init} is too large for these data, or X "
                f"for float32: no finite loss in epoch {epoch}"
            )
        self._params, self._moments, self._n_steps = params.copy(), np.stack(moments), n_steps
        self.n_iter_ = epoch
        self.loss_curve_.append(mean_loss)
        return mean_loss

    # Prediction

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape (n,)."""
        columns = self._logits(X).argmax(axis=1)
        best: np.ndarray = self.classes_[columns]
        return best

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float32 of shape (n, n_classes), in the order of `classes_`."""
        logits = self._logits(X)
        return softmax(logits, out=logits)

    def score(self, X: Any, y: Any) -> float:
        """The accuracy on X, y: the share of rows whose class is predicted."""
        predicted = self.predict(X)
        y = _as_labels(y)
        _check_length(y, len(predicted))
        return float(np.mean(predicted == y))

    def evaluate(self, X: Any, y: Any) -> Evaluation:
        """`fastce.evaluate` of the logits for X; its figures per class are those of `classes_`."""
        logits = self._logits(X)
        return evaluate(logits, _encode(self.classes_, _as_labels(y), len(logits)))

    def _logits(self, X: Any) -> np.ndarray:
        self._check_fitted()
        X = _as_inputs(X)
        self._check_features(X)
        layers = network.layer_views(self._params, self._sizes)
        whole = network.make_scratch(self._sizes, min(len(X), ROWS_AT_ONCE))
        logits = np.empty((len(X), len(self.classes_)), np.float32)
        for start in range(0, len(X), ROWS_AT_ONCE):
            batch = X[start : start + ROWS_AT_ONCE]
            scratch = network.first_rows(whole, len(batch))
            scratch.activations[0] = batch
            scratch.activations[-1] = logits[start : start + ROWS_AT_ONCE]
            with np.errstate(over="ignore", invalid="ignore"):  # one error below, not warnings
                network.forward(layers, scratch)
        if not np.isfinite(logits).all():
            row = int(np.argmin(np.isfinite(logits).all(axis=1)))
            raise ValueError(f"X: row {row} is too large for this model, whose logits overflow")
        return logits

    def _check_fitted(self) -> None:
        if not hasattr(self, "classes_"):
            raise NotFittedError("this MLPClassifier is not fitted: call fit or partial_fit first")

    def _check_features(self, X: np.ndarray) -> None:
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {X.shape[1]}")

    @property
    def coefs_(self) -> list[np.ndarray]:
        self._check_fitted()
        return [weight for weight, _ in network.layer_views(self._params, self._sizes)]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        self._check_fitted()
        return [bias for _, bias in network.layer_views(self._params, self._sizes)]

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the trained model to an .npz file: the same model gives the same bytes.

        It holds ``weight_0``, ``bias_0``, ``weight_1``, ... , ``classes`` and ``loss_curve``,
        loads with ``allow_pickle=False``, and replaces an older file atomically. The optimiser's
        moments are not in it: `partial_fit` after `load` starts them anew.
        """
        self._check_fitted()
        path = as_path(path)
        self._check_parameters()  # they may have been set since
        parameters = {name: _as_plain(value) for name, value in self.get_params().items()}
        parameters["hidden_layer_sizes"] = self._sizes[1:-1]
        arrays = {
            "format": np.array(MODEL_FORMAT),
            "parameters": np.array(json.dumps(parameters, sort_keys=True)),
            "classes": self.classes_,
            "loss_curve": np.array(self.loss_curve_),
        }
        for i, (weight, bias) in enumerate(network.layer_views(self._params, self._sizes)):
            arrays[f"weight_{i}"] = weight
            arrays[f"bias_{i}"] = bias
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MLPClassifier:
        """
        Read a model that `save` wrote.

        Raises
        ------
        ValueError
            If the file is damaged or is not such a model; the message names it.
        OSError
            If it cannot be read.
        """
        path = as_path(path)
        arrays = load_arrays(path)
        try:
            if str(arrays["format"]) != MODEL_FORMAT:
                raise ValueError(f"expected the format {MODEL_FORMAT}, got {arrays['format']}")
            classifier = cls(**json.loads(str(arrays["parameters"])))
            classes = _as_labels(arrays["classes"], "classes")
            if not np.array_equal(classes, np.unique(classes)):
                raise ValueError("classes are not sorted and different")
            classifier.hidden_layer_sizes = hidden = classifier._check_parameters()
            if arrays["weight_0"].ndim != 2 or len(arrays["weight_0"]) == 0:
                raise ValueError(
                    f"weight_0: expected shape (n_features, n), got {arrays['weight_0'].shape}"
                )
            n_features = len(arrays["weight_0"])
            shapes = list(itertools.pairwise((n_features, *hidden, len(classes))))
            for i, shape in enumerate(shapes):  # before room is made for what may not be there
                for name, expected in ((f"weight_{i}", shape), (f"bias_{i}", shape[1:])):
                    array = arrays[name]
                    if array.dtype != np.float32 or array.shape != expected:
                        raise ValueError(
                            f"{name}: expected float32 of shape {expected}, "
                            f"got {array.dtype} of {array.shape}"
                        )
                    if not np.isfinite(array).all():
                        raise ValueError(f"{name} is not finite")
            classifier._begin(n_features, classes)
            layers = network.layer_views(classifier._params, classifier._sizes)
            for i, (weight, bias) in enumerate(layers):
                weight[...], bias[...] = arrays[f"weight_{i}"], arrays[f"bias_{i}"]
            loss_curve = arrays["loss_curve"]
            if loss_curve.dtype != np.float64 or loss_curve.ndim != 1:
                raise ValueError(
                    "loss_curve: expected float64 of shape (n,), "
                    f"got {loss_curve.dtype} of {loss_curve.shape}"
                )
            if not np.isfinite(loss_curve).all():
                raise ValueError("loss_curve is not finite")
            classifier.loss_curve_ = loss_curve.tolist()
            classifier.n_iter_ = len(classifier.loss_curve_)
        except KeyError as error:
            reason = f"expected an array {error}, got {sorted(arrays)}"
            raise ValueError(f"{path}: not a model of fastce: {reason}") from None
        except (ValueError, TypeError, IndexError, MemoryError, RecursionError) as error:
            raise ValueError(f"{path}: not a model of fastce: {error}") from None
        return classifier


def _as_inputs(values: Any) -> np.ndarray:
    """X as finite C-contiguous float32 of shape (n, n_features), n and n_features above 0."""
    given = check_array(values, "X", "an array of numbers")
    if given.dtype.kind == "O":  # a pandas frame with columns of several dtypes, for one
        for value in given.flat:
            if not isinstance(value, (numbers.Real, np.bool_)):
                raise TypeError(f"X: expected numbers, got a {type(value).__name__}")
        given = given.astype(np.float64)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"X: expected numbers, got {given.dtype}")
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"X: expected shape (n, n_features), neither 0, got {given.shape}")
    with np.errstate(over="ignore"):
        X = np.ascontiguousarray(given, np.float32)
    # Two passes without a temporary, as NaN is the minimum of everything that holds one.
    if not (math.isfinite(X.min()) and math.isfinite(X.max())):
        row, column = np.argwhere(~np.isfinite(X))[0]
        raise ValueError(f"X: expected finite float32 values, got {X[row, column]} in row {row}")
    return X


def _as_labels(values: Any, name: str = "y") -> np.ndarray:
    y = check_array(values, name, "an array of labels")
    if y.ndim != 1:
        raise ValueError(f"{name}: expected shape (n,), got {y.shape}")
    if isinstance(values, (list, tuple)) and all(isinstance(x, LABEL_KINDS) for x in values):
        _check_one_kind(name, list(values))
    if y.dtype.kind in "OT":  # a column of strings from pandas, for one
        labels = y.tolist()
        _check_one_kind(name, labels)
        y = np.array(labels)
    if y.dtype.kind not in "biuUS":
        raise TypeError(f"{name}: expected integers or strings, got {y.dtype}")
    return y


def _check_one_kind(name: str, labels: list[Any]) -> None:
    """NumPy would make strings of all, if a single one is a string."""
    kinds = [next((kind for kind in LABEL_KINDS if isinstance(x, kind)), None) for x in labels]
    for i, kind in enumerate(kinds):
        if kind is None or kind is not kinds[0]:
            raise TypeError(
                f"{name}: expected integers or strings, not both, "
                f"got {shown(labels[i], repr)} in row {i}"
            )


def _encode(classes: np.ndarray, y: np.ndarray, n_rows: int) -> np.ndarray:
    """The labels' positions in `classes`, which are sorted."""
    _check_length(y, n_rows)
    known, labels = classes, y
    if known.dtype.kind in "iu" and np.result_type(known, labels).kind == "f":
        known, labels = known.astype(object), labels.astype(object)  # int64 and uint64
    targets = np.searchsorted(known, labels)
    np.minimum(targets, len(known) - 1, out=targets)
    unknown = known[targets] != labels
    if np.any(unknown):
        i = int(np.argmax(unknown))
        raise ValueError(
            f"y[{i}] is {y[i].item()!r}, which is none of the classes {classes.tolist()}"
        )
    return targets


def _check_length(y: np.ndarray, n_rows: int) -> None:
    if len(y) != n_rows:
        raise ValueError(f"y: expected {n_rows} labels, one for each row of X, got {len(y)}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {shown(value, repr)}")
    if value < least:
        raise ValueError(f"{name}: expected {least} or more, got {shown(value, repr)}")


def _as_plain(value: Any) -> Any:
    """A checked parameter as JSON can hold it, whatever library the number is of."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _as_float(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {shown(value, repr)}")
    try:
        return float(value)
    except OverflowError:  # an int
        return float("inf")
