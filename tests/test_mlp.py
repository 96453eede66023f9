"""MLPClassifier: right derivatives, the optimisers' formulas, learning, scikit-learn's manners."""

import copy
import io
import json
import os
import pickle
import re
import signal
import sys
import zipfile
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import fastce
from fastce._kernel import adam_step
from fastce.mlp import MLPClassifier, load_mnist, network
from fastce.mlp.classifier import DivergedError

FULL = os.environ.get("FASTCE_MNIST_DIR")


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


@pytest.fixture
def task(rng):
    """Three classes that a small network can tell apart: X (90, 6), y (90,)."""
    y = np.repeat(np.arange(3), 30)
    X = rng.normal(size=(90, 6)).astype(np.float32)
    X[np.arange(90), y] += 4
    return X, y


# Derivatives and steps


@pytest.mark.parametrize("sizes", [(5, 3), (5, 7, 3), (4, 6, 5, 3), (3, 1, 2)])
def test_backward_is_the_derivative_of_the_loss(rng, sizes):
    """In float64, against central differences. Their error is about eps**(2/3) times the values."""
    params = network.init_params(sizes, rng).astype(np.float64)
    params += 0.1 * rng.normal(size=params.size)  # biases are 0 at first, which would hide faults
    layers = network.layer_views(params, sizes)
    scratch = network.make_scratch(sizes, 8, np.float64)
    scratch.activations[0][...] = rng.normal(size=(8, sizes[0]))
    targets = rng.integers(0, sizes[-1], 8)

    grad = np.full_like(params, np.nan)
    fastce.cross_entropy_with_grad(
        network.forward(layers, scratch), targets, out=scratch.deltas[-1]
    )
    network.backward(layers, network.layer_views(grad, sizes), scratch)

    step = 6e-6  # eps ** (1 / 3)
    for i, value in enumerate(params.copy()):
        losses = []
        for params[i] in (value + step, value - step):
            losses.append(float(fastce.cross_entropy(network.forward(layers, scratch), targets)))
        params[i] = value
        assert abs((losses[0] - losses[1]) / (2 * step) - grad[i]) < 1e-9


def test_layers_share_the_flat_buffer():
    flat = np.arange(network.n_params((3, 2, 4)), dtype=np.float32)
    layers = network.layer_views(flat, (3, 2, 4))
    assert [layer.weight.shape for layer in layers] == [(3, 2), (2, 4)]
    np.testing.assert_array_equal(
        np.concatenate([part.ravel() for layer in layers for part in layer]), flat
    )
    assert all(np.shares_memory(part, flat) for layer in layers for part in layer)


def test_a_fit_is_these_steps(task):
    """The order and the count of everything, by hand: two epochs of two batches."""
    X, y = task
    sizes = (6, 4, 3)
    params = network.init_params(sizes, np.random.default_rng(5))
    grad, moments = np.empty_like(params), np.zeros((2, params.size), np.float32)
    layers, grads = network.layer_views(params, sizes), network.layer_views(grad, sizes)
    n_steps = 0
    for epoch in (1, 2):
        rng = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(epoch,)))
        order = rng.permutation(90)
        for rows in (order[:64], order[64:]):
            scratch = network.make_scratch(sizes, len(rows))
            scratch.activations[0][...] = X[rows]
            network.forward(layers, scratch)
            fastce.cross_entropy_with_grad(scratch.activations[-1], y[rows], out=scratch.deltas[-1])
            network.backward(layers, grads, scratch)
            n_steps += 1
            adam_step(params, grad, *moments, n_steps, 0.01, 0.8, 0.9, 1e-7)
    clf = MLPClassifier(
        4, max_iter=2, random_state=5, learning_rate_init=0.01, beta_1=0.8, beta_2=0.9, epsilon=1e-7
    ).fit(X, y)
    np.testing.assert_array_equal(clf._params, params)


@pytest.mark.parametrize("n", [1, 15, 16, 1000, 1024, 101_770])
def test_aligned_rows_are_apart_and_well_placed(n):
    rows = network.aligned_rows(4, n)
    starts = [row.ctypes.data for row in rows]
    assert [row.shape for row in rows] == [(n,)] * 4
    assert all(start % 64 == 0 for start in starts)
    assert len({start % 4096 for start in starts}) == 4
    for row in rows:
        assert not row.any()
        row[:] = 1


def test_an_interrupted_epoch_never_was(task):
    X, y = task
    clf, other = (MLPClassifier(8, batch_size=10, max_iter=1).fit(X, y) for _ in range(2))

    def interrupt(n_rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clf._train_epoch(X, y, interrupt)
    assert same_weights(clf.partial_fit(X, y), other.partial_fit(X, y))


def test_he_initialisation(rng):
    weight, bias = network.layer_views(network.init_params((400, 300), rng), (400, 300))[0]
    assert not bias.any()
    # 120,000 draws: the standard deviation's own is 1 / sqrt(2 * 120,000) = 0.2 % of it.
    assert weight.std() == pytest.approx(np.sqrt(2 / 400), rel=0.01)


def test_adam_is_pytorchs_formula(rng):
    """Ten steps against the textbook in float64."""
    params = rng.normal(size=37).astype(np.float32)
    moments = np.zeros((2, 37), np.float32)
    p, m, v = params.astype(np.float64), 0.0, 0.0
    for step in range(1, 11):
        g = rng.normal(size=37).astype(np.float32)
        adam_step(params, g, moments[0], moments[1], step, 0.01, 0.9, 0.99, 1e-3)
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g.astype(np.float64) ** 2
        p -= 0.01 / (1 - 0.9**step) * m / (np.sqrt(v) / np.sqrt(1 - 0.99**step) + 1e-3)
    np.testing.assert_allclose(params, p, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moments, [m, v], rtol=1e-5)


def test_adam_lets_no_moment_stick_at_a_subnormal():
    """0.9 of the smallest subnormal rounds to itself."""
    params, grad = np.ones(40, np.float32), np.zeros(40, np.float32)
    moments = np.full((2, 40), 1e-38, np.float32)
    for step in range(1, 200):
        adam_step(params, grad, *moments, step, 1e-3, 0.9, 0.999, 1e-8)
    np.testing.assert_array_equal(moments, 0)
    np.testing.assert_array_equal(params, 1)


def test_adam_poisons_only_what_is_nan():
    params, grad = np.ones((2, 40), np.float32)
    grad[3] = np.nan
    moments = np.zeros((2, 40), np.float32)
    adam_step(params, grad, *moments, 1, 1e-3, 0.9, 0.999, 1e-8)
    for array in (params, *moments):
        assert np.flatnonzero(np.isnan(array)).tolist() == [3]


def test_sgd_is_pytorchs_formula(rng):
    params, velocity = rng.normal(size=(2, 37)).astype(np.float32)
    p, v = params.astype(np.float64), velocity.astype(np.float64)
    for _ in range(10):
        g = rng.normal(size=37).astype(np.float32)
        v = 0.8 * v + g
        p -= 0.01 * v
        network.sgd_step(params, g, velocity, 0.01, 0.8)
    np.testing.assert_allclose(params, p, rtol=0, atol=1e-6)
    np.testing.assert_allclose(velocity, v, rtol=0, atol=1e-5)


# Learning


@pytest.mark.parametrize(("solver", "rate"), [("adam", 0.01), ("sgd", 0.1)])
@pytest.mark.parametrize("hidden", [(), 12, (12, 8)])
def test_overfits_one_batch(task, hidden, solver, rate):
    X, y = task
    clf = MLPClassifier(
        hidden, solver=solver, learning_rate_init=rate, batch_size=90, max_iter=300
    ).fit(X, y)
    assert clf.score(X, y) == 1
    assert clf.loss_curve_[-1] < 0.05 * clf.loss_curve_[0]


@pytest.mark.parametrize(("solver", "rate"), [("adam", 1e-3), ("sgd", 0.05)])
def test_learns_mnist(mnist, solver, rate):
    X, y, X_test, y_test = mnist
    clf = MLPClassifier(solver=solver, learning_rate_init=rate).fit(X, y)
    assert clf.score(X_test, y_test) >= 0.93
    assert clf.n_iter_ == len(clf.loss_curve_) == 10
    assert (np.diff(clf.loss_curve_) < 0).all()


@pytest.mark.skipif(not FULL, reason="FASTCE_MNIST_DIR is not set")
def test_learns_the_full_mnist():
    X, y, X_test, y_test = load_mnist(FULL)
    for seed in range(3):
        assert MLPClassifier(random_state=seed).fit(X, y).score(X_test, y_test) >= 0.975


def test_the_first_loss_is_that_of_the_initial_weights(task):
    """One batch holds all rows: the epoch's loss is known before the step."""
    X, y = task
    clf = MLPClassifier(4, batch_size=90, max_iter=1)
    clf._begin(6, np.arange(3))
    expected = clf.evaluate(X, y).loss
    assert clf.fit(X, y).loss_curve_ == [pytest.approx(expected, rel=1e-6)]


@pytest.mark.parametrize(("n", "batch_size"), [(90, 64), (1, 64), (65, 64), (10, 1), (30, 10**20)])
def test_a_short_last_batch_counts_by_its_rows(task, n, batch_size):
    """With a learning rate of nearly nothing the epoch's loss is the mean over all rows."""
    X, y = (a[::-1][:n] for a in task)
    clf = MLPClassifier(5, batch_size=batch_size, learning_rate_init=1e-20, max_iter=1)
    clf.partial_fit(X, y, classes=[0, 1, 2])
    assert clf.loss_curve_[0] == pytest.approx(clf.evaluate(X, y).loss, rel=1e-5)


@pytest.mark.parametrize("n", [90, 64])
def test_every_row_is_met_once_an_epoch(monkeypatch, n):
    X = np.arange(n, dtype=np.float32)[:, None]
    met = []
    forward = network.forward

    def spy(layers, scratch):
        met.append(scratch.activations[0].ravel().copy())
        return forward(layers, scratch)

    monkeypatch.setattr(network, "forward", spy)
    MLPClassifier(2, max_iter=2).fit(X, np.arange(n) % 2)
    half = len(met) // 2
    first, second = np.concatenate(met[:half]), np.concatenate(met[half:])
    assert sorted(first) == sorted(second) == list(range(n))
    assert not np.array_equal(first, second)


# The same bits


def same_weights(a, b):
    return a._params.tobytes() == b._params.tobytes()


def test_the_seed_decides_the_bits(task):
    first, second = (MLPClassifier(8, max_iter=3).fit(*task) for _ in range(2))
    assert same_weights(first, second)
    assert not same_weights(first, MLPClassifier(8, max_iter=3, random_state=1).fit(*task))
    anyones = [MLPClassifier(8, max_iter=1, random_state=None).fit(*task) for _ in range(2)]
    assert not same_weights(*anyones)


def test_threads_do_not_change_the_bits(mnist):
    X, y = mnist[0][:1000], mnist[1][:1000]
    weights = set()
    for n_threads in (1, 2, 3):
        with fastce.threads(n_threads):
            weights.add(MLPClassifier(300, max_iter=1).fit(X, y)._params.tobytes())
    assert len(weights) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_partial_fit_goes_on_where_fit_ended(task, copied):
    whole = MLPClassifier(8, max_iter=5).fit(*task)
    clf = MLPClassifier(8, max_iter=3).fit(*task)
    clf = copied(clf).partial_fit(*task)
    clf.partial_fit(*task)
    assert clf.n_iter_ == 5
    assert clf.loss_curve_ == whole.loss_curve_
    assert same_weights(clf, whole)


def test_the_memory_layout_and_dtype_of_the_data_do_not_matter(task):
    X, y = task
    expected = MLPClassifier(8, max_iter=2).fit(X, y)
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.zeros((90, 12), np.float32)
    wide[:, ::2] = X
    for other in (X.astype(np.float64), np.asfortranarray(X), frozen, wide[:, ::2], X.tolist()):
        assert same_weights(MLPClassifier(8, max_iter=2).fit(other, y.astype(np.int8)), expected)


# Prediction and labels


def test_probabilities(task):
    X, y = task
    clf = MLPClassifier(8, max_iter=20).fit(X, y)
    p = clf.predict_proba(X)
    assert p.shape == (90, 3)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(clf.predict(X), p.argmax(axis=1))
    result = clf.evaluate(X, y)
    loss, accuracy = result.loss, result.accuracy
    assert loss == pytest.approx(-np.log(p[np.arange(90), y]).mean(), rel=1e-4)
    assert accuracy == clf.score(X, y)


def test_rows_are_predicted_alike_in_any_number(mnist):
    X, y = mnist[:2]
    clf = MLPClassifier(16, max_iter=1).fit(X[:500], y[:500])
    p = clf.predict_proba(X[:2500])
    # BLAS sums in another order for other shapes; 784 terms, so some ulps.
    for n in (1, 1023, 1024, 1025):
        np.testing.assert_allclose(clf.predict_proba(X[:n]), p[:n], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("names", [["no", "perhaps", "yes"], [-7, 3, 1000], [False, True, True]])
def test_labels_of_any_kind(task, names):
    X, y = task
    y = np.array(names)[y]
    clf = MLPClassifier(8, max_iter=30, learning_rate_init=0.02).fit(X, y)
    assert clf.classes_.tolist() == sorted(set(names))
    assert clf.predict(X).dtype == y.dtype
    assert clf.score(X, y) > 0.9
    assert clf.score(X, y.astype(object)) == clf.score(X, y)


def test_labels_beyond_the_integers_of_a_double_are_told_apart(task):
    """NumPy compares int64 with uint64 as float64."""
    X, y = task
    y = y + 2**60
    clf = MLPClassifier(8, max_iter=30, learning_rate_init=0.02).fit(X, y)
    unsigned = y.astype(np.uint64)
    assert clf.evaluate(X, unsigned).accuracy == clf.score(X, y) > 0.9
    assert clf.partial_fit(X, unsigned).classes_.tolist() == np.unique(y).tolist()
    with pytest.raises(ValueError, match=r"y\[0\] is 1152921504606846979, which is none"):
        clf.evaluate(X[:1], np.array([2**60 + 3], np.uint64))


def test_strings_of_any_length_are_labels(task):
    X, y = task
    names = ["no", "perhaps", "yes"]
    y = np.array(names, np.dtypes.StringDType())[y]
    assert MLPClassifier(8, max_iter=1).fit(X, y).classes_.tolist() == names


def test_parameters_can_be_set_and_shown():
    clf = MLPClassifier()
    assert repr(clf) == "MLPClassifier()"
    assert clf.set_params(max_iter=3, hidden_layer_sizes=np.array([4, 5])) is clf
    assert repr(clf) == "MLPClassifier(hidden_layer_sizes=array([4, 5]), max_iter=3)"
    with pytest.raises(ValueError, match=r"^epochs: expected one of hidden_layer_sizes, solver"):
        clf.set_params(max_iter=7, epochs=3)
    assert clf.max_iter == 3


def test_partial_fit_keeps_the_layers_of_the_first_call(task):
    clf = MLPClassifier(8).partial_fit(*task)
    clf.hidden_layer_sizes = (5,)
    with pytest.raises(ValueError, match=r"hidden_layer_sizes: expected .*\(8,\), got \(5,\)"):
        clf.partial_fit(*task)
    clf.hidden_layer_sizes = [8]
    clf.partial_fit(*task)


def test_partial_fit_may_bring_classes_later(task):
    X, y = task
    clf = MLPClassifier(8).partial_fit(X[:30], y[:30], classes=[0, 1, 2])
    clf.partial_fit(X[30:], y[30:], classes=[0, 1, 2])
    assert clf.predict_proba(X).shape == (90, 3)
    with pytest.raises(ValueError, match=r"classes: expected those of the first call"):
        clf.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"y\[3\] is 7, which is none of the classes \[0, 1, 2\]"):
        clf.partial_fit(X[:4], [0, 1, 2, 7])


# What cannot be


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("hidden_layer_sizes", (128, 0), ValueError),
        ("hidden_layer_sizes", -1, ValueError),
        ("hidden_layer_sizes", (1.5,), TypeError),
        ("hidden_layer_sizes", True, TypeError),
        ("hidden_layer_sizes", "", TypeError),
        ("hidden_layer_sizes", {3: 1}, TypeError),
        ("hidden_layer_sizes", iter([3]), TypeError),  # gone after the first fit
        ("solver", "lbfgs", ValueError),
        ("solver", np.array([["adam"], ["sgd"]]), TypeError),
        ("learning_rate_init", 0.0, ValueError),
        ("learning_rate_init", float("nan"), ValueError),
        ("learning_rate_init", float("inf"), ValueError),
        ("learning_rate_init", "0.1", TypeError),
        ("batch_size", 0, ValueError),
        ("batch_size", 1.0, TypeError),
        ("batch_size", np.ones((2, 2)), TypeError),
        ("max_iter", 0, ValueError),
        ("random_state", -1, ValueError),
        pytest.param("random_state", 10**5000, ValueError, id="huge"),
        ("random_state", "x", TypeError),
        ("momentum", 1.0, ValueError),
        ("beta_1", -0.1, ValueError),
        ("beta_2", float("nan"), ValueError),
        ("epsilon", 0.0, ValueError),
        ("epsilon", 1e-16, ValueError),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_impossible_parameters_are_named(task, method, name, value, error):
    clf = MLPClassifier(**{name: value})
    with pytest.raises(error, match=f"^{name}: ") as caught:
        getattr(clf, method)(*task)
    assert "\n" not in str(caught.value)
    assert not hasattr(clf, "classes_")


def objects(values):
    """As pandas gives columns of strings, and frames with columns of several dtypes."""
    array = np.empty((len(values), 6) if isinstance(values[0], list) else len(values), object)
    array[...] = values if array.ndim == 2 else 0
    for i, value in enumerate(values if array.ndim == 1 else ()):
        array[i] = value
    return array


def with_value(X, value):
    X = X.astype(np.float64)
    X[5, 2] = value
    return X


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda X, y: (X[0], y), ValueError, "X: expected shape"),
        (lambda X, y: (X[:0], y[:0]), ValueError, "X: expected shape"),
        (lambda X, y: (X[:, :0], y), ValueError, "X: expected shape"),
        (lambda X, y: (X.astype(complex), y), TypeError, "X: expected numbers, got complex128"),
        (lambda X, y: (X.astype(str), y), TypeError, "X: expected numbers"),
        (lambda X, y: (with_value(X, np.nan), y), ValueError, "X: .* got nan in row 5"),
        (lambda X, y: (with_value(X, -np.inf), y), ValueError, "X: .* got -inf in row 5"),
        (lambda X, y: (with_value(X, 1e39), y), ValueError, "X: .* got inf in row 5"),
        (lambda X, y: (X, y[:-1]), ValueError, "y: expected 90 labels, .* got 89"),
        (lambda X, y: (X, y[:, None]), ValueError, "y: expected shape"),
        (lambda X, y: (X, y + 0.5), TypeError, "y: expected integers or strings, got float64"),
        (lambda X, y: (X, [None, *y[1:]]), TypeError, "y: expected integers or strings"),
        (lambda X, y: (X, objects(["a", np.nan, *"a" * 88])), TypeError, "y: .* nan in row 1"),
        (lambda X, y: (X, objects([*"1" * 89, 1])), TypeError, "y: .* got 1 in row 89"),
        (lambda X, y: (X, objects([True, 2, *[1] * 88])), TypeError, "y: .* got 2 in row 1"),
        (lambda X, y: (X, [*"1" * 89, 1]), TypeError, "y: .* got 1 in row 89"),
        (lambda X, y: (X, (True, 2, *[1] * 88)), TypeError, "y: .* got 2 in row 1"),
        (lambda X, y: (X, objects([(1, 2), *"a" * 89])), TypeError, r"y: .* got \(1, 2\) in row 0"),
        (lambda X, y: (objects([["1"] * 6] * 90), y), TypeError, "X: expected numbers, got a str"),
        (lambda X, y: (objects([[None] * 6] * 90), y), TypeError, "X: .*, got a NoneType"),
        (lambda X, y: (np.ma.masked_array(X, X > 1), y), TypeError, "X must be .*masked array"),
        (lambda X, y: (X, np.ma.masked_array(y, y > 1)), TypeError, "y must be .*masked array"),
        (lambda X, y: ([[1.0], [1.0, 2.0]], y), ValueError, "X must be an array of numbers"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "score"])
def test_impossible_data_are_named(task, method, change, error, message):
    clf = MLPClassifier(4, max_iter=1)
    if method == "score":
        clf.fit(*task)
    with pytest.raises(error, match=message) as caught:
        getattr(clf, method)(*change(*task))
    assert "\n" not in str(caught.value)


def test_numbers_of_several_kinds_in_one_frame(task):
    X, y = task
    mixed = X.astype(object)
    mixed[:, 0] = X[:, 0] > 1
    mixed[:, 1] = (X[:, 1] * 8).astype(int)
    plain = mixed.astype(np.float32)
    clf = MLPClassifier(4, max_iter=2).fit(plain, y)
    np.testing.assert_array_equal(clf.predict_proba(mixed), clf.predict_proba(plain))


@pytest.mark.parametrize("size", [np.int8(16), np.uint8(16), np.int8(100)])
def test_a_batch_size_of_few_bits(task, size):
    """Of 130 rows: in 8 bits, where the last batches begin is negative."""
    X, y = np.tile(task[0], (2, 1))[:130], np.tile(task[1], 2)[:130]
    clf = MLPClassifier(4, max_iter=2, batch_size=size).fit(X, y)
    assert (
        clf.loss_curve_ == MLPClassifier(4, max_iter=2, batch_size=int(size)).fit(X, y).loss_curve_
    )


def test_a_fit_without_memory_leaves_a_model_as_it_was(task, monkeypatch):
    X, y = task
    clf = MLPClassifier(4, max_iter=1).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(hidden_layer_sizes=5)

    zeros = np.zeros

    def none_left(shape, *args, **keywords):
        if isinstance(shape, tuple):  # the moments; the weights are there already
            raise MemoryError
        return zeros(shape, *args, **keywords)

    monkeypatch.setattr(np, "zeros", none_left)
    with pytest.raises(MemoryError):
        clf.fit(X, y)
    monkeypatch.undo()
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_logits_that_overflow_are_an_error(task):
    X, y = task
    clf = MLPClassifier(4, max_iter=1).fit(X, y)
    clf._params *= 1000
    for method in (clf.predict, clf.predict_proba, lambda X: clf.score(X, y[:3])):
        with pytest.raises(ValueError, match=r"^X: row 1 is too large"):
            method(X[:3] * np.float32([[1], [3e37], [3e37]]))


@pytest.mark.parametrize("rate", [Fraction(1, 100), np.longdouble("0.01"), np.float32(0.01)])
def test_numbers_of_any_library_are_saved(task, tmp_path, rate):
    clf = MLPClassifier(np.array([4]), learning_rate_init=rate, batch_size=np.int16(9))
    clf.fit(*task).save(tmp_path / "model.npz")
    loaded = MLPClassifier.load(tmp_path / "model.npz")
    assert (loaded.learning_rate_init, loaded.batch_size) == (float(rate), 9)
    clf.set_params(batch_size=float("nan"))
    with pytest.raises(TypeError, match=r"^batch_size: expected an integer, got nan"):
        clf.save(tmp_path / "model.npz")


def test_a_subclass_keeps_its_parameters():
    class Named(MLPClassifier):
        def __init__(self, name="a", *, max_iter=3):
            super().__init__(max_iter=max_iter)
            self.name = name

    clf = Named("b")
    assert clf.get_params() == {"name": "b", "max_iter": 3}
    assert repr(clf) == "Named(name='b')"


@pytest.mark.parametrize("classes", [[[0, 1, 2]], objects([0, 1, "2"]), [0, 1]])
def test_classes_are_checked_at_every_call(task, classes):
    clf = MLPClassifier(4).partial_fit(*task)
    with pytest.raises((ValueError, TypeError), match=r"^classes: expected"):
        clf.partial_fit(*task, classes=classes)


def test_a_fitted_model_wants_the_same_features(task):
    X, y = task
    clf = MLPClassifier(4, max_iter=1).fit(X, y)
    for method in (clf.predict, clf.predict_proba, lambda X: clf.partial_fit(X, y)):
        with pytest.raises(ValueError, match=r"X: expected 6 features, got 5"):
            method(X[:, :5])


def test_not_fitted(task, tmp_path):
    clf = MLPClassifier()
    for use in (clf.predict, clf.predict_proba, lambda X: clf.score(X, task[1])):
        with pytest.raises(ValueError, match=r"not fitted"):
            use(task[0])
    with pytest.raises(ValueError, match=r"not fitted"):
        clf.save(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())
    for name in ("coefs_", "intercepts_"):
        assert not hasattr(clf, name)
        with pytest.raises(ValueError, match=r"not fitted"):
            getattr(clf, name)


def test_labels_that_do_not_fit_leave_a_model_as_it_was(task):
    X, y = task
    clf = MLPClassifier(4, max_iter=1).fit(X, y)
    before = [*clf.coefs_, *clf.intercepts_, clf.loss_curve_, clf.classes_, clf.predict(X)]
    with pytest.raises(ValueError, match="y: expected 90 labels"):
        clf.fit(X, y[:-1])
    after = [*clf.coefs_, *clf.intercepts_, clf.loss_curve_, clf.classes_, clf.predict(X)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    new = MLPClassifier(4)
    for labels, classes in ((y[:-1], None), (y + 1, [0, 1, 2])):
        with pytest.raises(ValueError, match=r"y: expected 90 labels|none of the classes"):
            new.partial_fit(X, labels, classes)
        assert not hasattr(new, "classes_")


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_learning_rate_too_large_is_an_error_not_nan(task, solver):
    clf = MLPClassifier(8, solver=solver, learning_rate_init=1e38, batch_size=8)
    with pytest.raises(DivergedError, match=r"^learning_rate_init: 1e\+38 is too large"):
        clf.fit(*task)
    with pytest.raises(ValueError, match=r"not fitted"):
        clf.predict(task[0])
    assert not [name for name in vars(clf) if name.endswith("_")]  # what scikit-learn looks at


def test_weights_that_overflow_in_the_last_step_are_an_error(task):
    """The loss of the only batch came before the step: it is finite."""
    clf = MLPClassifier(solver="sgd", learning_rate_init=1e38, batch_size=90, max_iter=1)
    with pytest.raises(DivergedError):
        clf.fit(1000 * task[0], task[1])


# Files


def test_a_saved_model_comes_back(task, tmp_path):
    X, y = task
    y = np.array(["no", "perhaps", "yes"])[y]
    clf = MLPClassifier([8, 5], max_iter=np.int8(3), momentum=np.float32(0.5), random_state=2**70)
    clf.fit(X, y)
    clf.save(tmp_path / "a.npz")
    back = MLPClassifier.load(tmp_path / "a.npz")
    assert back.get_params() == {**clf.get_params(), "hidden_layer_sizes": (8, 5)}
    assert same_weights(back, clf)
    assert back.loss_curve_ == clf.loss_curve_
    assert back.n_iter_ == 3
    np.testing.assert_array_equal(back.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(back.predict(X), clf.predict(X))
    back.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    back.partial_fit(X, y)


def test_a_saved_model_is_plain_arrays_without_times(task, tmp_path):
    clf = MLPClassifier((8,), max_iter=1).fit(*task)
    path = tmp_path / "any name"
    clf.save(path)
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["weight_0"], clf.coefs_[0])
        np.testing.assert_array_equal(arrays["bias_1"], clf.intercepts_[1])
    with zipfile.ZipFile(path) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("opened", ["os.open", "builtins.open"])
def test_saving_or_loading_interrupted_as_the_file_is_opened_leaves_no_trace(
    task, tmp_path, monkeypatch, opened
):
    """A file object that nobody holds would be warned of, which is an error here."""
    clf = MLPClassifier(hidden_layer_sizes=(4,), max_iter=1).fit(*task)
    clf.save(tmp_path / "model.npz")
    before = (tmp_path / "model.npz").read_bytes()
    module, name = opened.split(".")
    real = getattr(sys.modules[module], name)

    def interrupted(*args, **options):
        real(*args, **options)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(opened, interrupted)
        with pytest.raises(KeyboardInterrupt):
            clf.save(tmp_path / "model.npz")
        with pytest.raises(KeyboardInterrupt):
            MLPClassifier.load(tmp_path / "model.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]
    assert (tmp_path / "model.npz").read_bytes() == before


def test_a_failed_save_leaves_the_old_file(task, tmp_path, monkeypatch):
    clf = MLPClassifier(4, max_iter=1).fit(*task)
    path = tmp_path / "model.npz"
    clf.save(path)
    old = path.read_bytes()
    clf.partial_fit(*task)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model.npz"):
        clf.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def model(task, tmp_path):
    path = tmp_path / "model.npz"
    MLPClassifier((8,), max_iter=1).fit(*task).save(path)
    return path


def rewritten(path, **changes):
    with np.load(path) as arrays:
        arrays = dict(arrays)
    arrays.update(changes)
    with open(path, "wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"format": np.array("fastce-mlp-2")},
        {"format": None},
        {"parameters": np.array("{")},
        {"parameters": np.array('{"solver": "lbfgs"}')},
        {"parameters": np.array('{"unknown": 1}')},
        {"parameters": np.array(json.dumps({"hidden_layer_sizes": [10**18]}))},
        {"parameters": np.array("[1]")},
        {"classes": np.array([1, 0, 2])},
        {"classes": np.array([0, 0, 2])},
        {"classes": np.array([0.0, 1.0, 2.0])},
        {"classes": np.array(3)},
        {"weight_0": np.zeros((6, 9), np.float32)},
        {"weight_0": np.float32(3)},
        {"weight_0": np.zeros((0, 8), np.float32)},
        {"weight_0": np.zeros((6, 8))},
        {"weight_0": np.full((6, 8), np.nan, np.float32)},
        {"bias_1": None},
        {"loss_curve": np.array(1.0)},
        {"loss_curve": np.array(["a"])},
        {"loss_curve": np.zeros((2, 2))},
        {"loss_curve": np.array([np.nan])},
    ],
)
def test_a_file_that_is_no_model_is_named(model, changes):
    with pytest.raises(ValueError, match=r"model.npz: not a model of fastce: ") as error:
        MLPClassifier.load(rewritten(model, **changes))
    assert "\n" not in str(error.value)


def test_what_lies_in_a_foreign_archive_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"expected an array 'format', got \['images'\]"):
        MLPClassifier.load(tmp_path / "other.npz")


def test_pickles_and_compression_are_refused(model):
    rewritten(model, classes=np.array([{}, 1, 2], object))
    with pytest.raises(ValueError, match=r"model.npz: not a readable .npz file: .*allow_pickle"):
        MLPClassifier.load(model)
    np.savez_compressed(model, weight_0=np.zeros(10**6))
    with pytest.raises(ValueError, match=r"compressed or overlapping members"):
        MLPClassifier.load(model)
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("classes", "no array at all")
    with pytest.raises(ValueError, match=r"classes is not an array"):
        MLPClassifier.load(model)


def test_an_array_that_claims_more_than_the_file_holds(model):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(model, "w") as archive:
        archive.writestr("weight_0.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"not a readable"):
        MLPClassifier.load(model)


@hypothesis.given(data=st.data())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_damaged_bytes_are_refused_or_harmless(model, data):
    """Any change of one byte, and any cut, ends in one named line or in a model that predicts."""
    original = model.read_bytes()
    damaged = bytearray(original)
    position = data.draw(st.integers(0, len(original) - 1))
    damaged[position] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del damaged[position:]
    model.write_bytes(damaged)
    try:
        clf = MLPClassifier.load(model)
    except ValueError as error:
        harmless = re.fullmatch(f"{re.escape(str(model))}: .*", str(error))
    else:
        harmless = np.isfinite(clf.predict_proba(np.ones((2, 6)))).all()
    model.write_bytes(original)
    assert harmless


def test_missing_files_and_folders_are_not_models(tmp_path):
    with pytest.raises(FileNotFoundError):
        MLPClassifier.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"expected a regular file"):
        MLPClassifier.load(tmp_path)


@pytest.mark.parametrize("path", [None, 3, np.arange(4), "", "/", "model\0.npz"], ids=repr)
def test_a_path_that_names_no_file_is_named(model, path):
    fitted = MLPClassifier.load(model)
    for use in (fitted.save, MLPClassifier.load):
        with pytest.raises((TypeError, ValueError), match=r"^path: expected a file name, got "):
            use(path)


def test_a_path_may_be_bytes(model, tmp_path):
    MLPClassifier.load(os.fsencode(model)).save(os.fsencode(tmp_path / "copy.npz"))
    assert (tmp_path / "copy.npz").read_bytes() == model.read_bytes()


def test_a_model_replaces_files_only(model, tmp_path):
    fitted = MLPClassifier.load(model)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected a regular file"):
        fitted.save(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        fitted.save(tmp_path)
    model.chmod(0o600)
    (tmp_path / "link.npz").symlink_to(model)
    fitted.save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert model.stat().st_mode & 0o777 == 0o600
    assert fitted.get_params() == MLPClassifier.load(model).get_params()


def test_a_model_that_says_it_is_huge_is_refused_before_room_is_made(model):
    rewritten(model, parameters=np.array(json.dumps({"hidden_layer_sizes": [10**9]})))
    with pytest.raises(ValueError, match=r"weight_0: expected float32 of shape .*1000000000"):
        MLPClassifier.load(model)
    rewritten(model, parameters=np.array("[" * 200_000))
    with pytest.raises(ValueError, match="not a model of fastce"):
        MLPClassifier.load(model)


def test_parameters_say_what_they_are(rng):
    X, y = rng.normal(size=(20, 3)), np.arange(20) % 3
    for wrong, message in (
        ({"hidden_layer_sizes": 1.5}, "hidden_layer_sizes: .*1.5"),
        ({"hidden_layer_sizes": None}, "hidden_layer_sizes: .*None"),
        ({"hidden_layer_sizes": 10**5000}, "hidden_layer_sizes: .*a huge int"),
        ({"max_iter": -(10**5000)}, "max_iter: .*a huge int"),
        ({"beta_1": 10**400}, "beta_1: .*inf"),
        ({"epsilon": 1e-46}, "epsilon: .*1e-46"),
        ({"learning_rate_init": 1e39}, "learning_rate_init: "),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            MLPClassifier(**wrong).fit(X, y)
    with pytest.raises(TypeError, match="classes: expected integers or strings, got float64"):
        MLPClassifier().partial_fit(X, y, classes=[0.0, 1.0, 2.0])
    clf = MLPClassifier(solver="sgd").partial_fit(X, y)
    clf.solver = "adam"
    with pytest.raises(ValueError, match="solver: expected that of the first call"):
        clf.partial_fit(X, y)
