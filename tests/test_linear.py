"""Losses of products whose logits are never there as a whole, beside those of the whole."""

import tracemalloc

import numpy as np
import pytest

import fastce
from fastce import _linear

OPTIONS = [
    {},
    {"reduction": "sum", "upstream": -2.0},
    {"reduction": "none", "upstream": np.linspace(-1, 2, 30)},
    {"class_weight": np.linspace(0, 2, 11), "label_smoothing": 0.1},
    {"sample_weight": np.arange(30) % 3, "normalizer": 7.0, "upstream": 3.0},
    {"logit_scale": 0.5, "softcap": 2.0, "z_loss": 0.01, "ignore_index": 4},
]


@pytest.fixture
def task(rng):
    """hidden (30, 5), weight (11, 5), bias (11,), targets (30,)."""
    return (
        rng.normal(size=(30, 5)),
        rng.normal(size=(11, 5)),
        rng.normal(size=11),
        rng.integers(0, 11, 30),
    )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "none")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_block_after_the_other_as_the_whole(task, monkeypatch, rows, with_bias, options):
    hidden, weight, bias, targets = task
    monkeypatch.setattr(_linear, "BLOCK", rows * len(weight))
    monkeypatch.setattr(_linear, "SLICE", 3 * hidden.shape[1])  # of 11 classes: the last is partial
    given = bias if with_bias else None
    logits = hidden @ weight.T + (bias if with_bias else 0)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, **options)
    found, grads = fastce.linear_cross_entropy_with_grad(
        hidden, weight, targets, bias=given, **options
    )
    # the products' order of additions is the BLAS's own
    close = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(found, loss, **close)
    np.testing.assert_allclose(grads.hidden, grad @ weight, **close)
    np.testing.assert_allclose(grads.weight, grad.T @ hidden, **close)
    if with_bias:
        np.testing.assert_allclose(grads.bias, grad.sum(axis=0), **close)
    else:
        assert grads.bias is None
    options = {name: value for name, value in options.items() if name != "upstream"}
    alone = fastce.linear_cross_entropy(hidden, weight, targets, bias=given, **options)
    np.testing.assert_array_equal(alone, found)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtypes(task, dtype):
    """Products in float32, the gradients of halves rounded once."""
    hidden, weight, bias, targets = task
    halves = [array.astype(dtype) for array in (hidden, weight, bias)]
    loss, grads = fastce.linear_cross_entropy_with_grad(*halves[:2], targets, bias=halves[2])
    wide = [array.astype(np.float64) for array in halves]
    expected, wide_grads = fastce.linear_cross_entropy_with_grad(*wide[:2], targets, bias=wide[2])
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for name in ("hidden", "weight", "bias"):
        found, exact = getattr(grads, name), getattr(wide_grads, name)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, exact, rtol=float(np.finfo(dtype).eps), atol=3e-7)
    mixed, grads = fastce.linear_cross_entropy_with_grad(wide[0], halves[1], targets)
    assert (mixed.dtype, grads.hidden.dtype, grads.weight.dtype) == (
        np.float64, np.float64, dtype,
    )  # fmt: skip


def test_rows_of_any_shape(task):
    hidden, weight, _, targets = task
    flat = fastce.linear_cross_entropy_with_grad(hidden, weight, targets, reduction="none")
    loss, grads = fastce.linear_cross_entropy_with_grad(
        hidden.reshape(2, 3, 5, 5)[:, ::-1], weight, targets.reshape(2, 3, 5)[:, ::-1],
        reduction="none",
    )  # fmt: skip
    np.testing.assert_allclose(loss, flat[0].reshape(2, 3, 5)[:, ::-1], rtol=1e-12)
    np.testing.assert_allclose(grads.hidden, flat[1].hidden.reshape(2, 3, 5, 5)[:, ::-1], rtol=1e-9)
    one = fastce.linear_cross_entropy(hidden[0], weight, targets[0])
    np.testing.assert_allclose(one, flat[0][0], rtol=1e-12)


@pytest.mark.parametrize("reason", ["ignore_index", "sample_weight"])
def test_what_a_row_that_is_not_there_holds_does_not_matter(task, reason):
    hidden, weight, bias, targets = task
    gone = np.arange(30) % 4 == 1
    options = {"sample_weight": ~gone * 1.0} if reason == "sample_weight" else {}
    if reason == "ignore_index":
        targets = np.where(gone, -100, targets)
    expected = fastce.linear_cross_entropy_with_grad(hidden, weight, targets, bias=bias, **options)
    hidden = np.where(gone[:, None], np.nan, hidden)
    loss, grads = fastce.linear_cross_entropy_with_grad(
        hidden, weight, targets, bias=bias, **options
    )
    assert loss == expected[0]
    for found, exact in zip(grads, expected[1], strict=True):
        np.testing.assert_array_equal(found, exact)
    assert not grads.hidden[gone].any()


def test_no_row_left(task):
    hidden, weight, _, _ = task
    none = np.full(30, -100)
    loss, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, none)
    assert np.isnan(loss)
    assert not grads.hidden.any()
    assert not grads.weight.any()
    loss, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, none, on_empty="zero")
    assert loss == 0
    assert not grads.weight.any()
    with pytest.raises(ValueError, match="on_empty is 'raise'"):
        fastce.linear_cross_entropy(hidden, weight, none, on_empty="raise")
    loss, grads = fastce.linear_cross_entropy_with_grad(
        hidden[:0], weight, none[:0], bias=np.ones(11)
    )
    assert np.isnan(loss)
    assert (grads.hidden.shape, grads.weight.shape) == ((0, 5), (11, 5))
    assert not grads.bias.any()
    # rows that are there, but of classes that weigh nothing: as in cross_entropy
    loss, grads = fastce.linear_cross_entropy_with_grad(
        hidden, weight, np.zeros(30, int), class_weight=[0.0] * 11
    )
    assert np.isnan(loss)
    assert np.isnan(grads.hidden).all()


@pytest.mark.parametrize("weight_of_row", [1e-200, 1e-50, 1e50, 1e200])
def test_a_mean_of_rows_whose_losses_are_no_floats(task, weight_of_row):
    hidden, weight, _, targets = (array.astype(np.float32) for array in task)
    targets = targets.astype(int)
    options = {"sample_weight": np.full(30, weight_of_row)}
    loss, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, targets, **options)
    expected, same = fastce.linear_cross_entropy_with_grad(hidden, weight, targets)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grads.weight, same.weight, rtol=1e-5, atol=1e-8)


def test_what_a_row_that_is_not_there_would_have_met_does_not_matter(task):
    hidden, weight, _, targets = task
    weight[2] = -np.inf
    targets[3] = -100
    grads = fastce.linear_cross_entropy_with_grad(hidden, weight, targets)[1]
    assert not grads.hidden[3].any()
    assert np.isnan(grads.hidden[4]).all()  # -inf times 0


def test_zero_is_zero(task):
    hidden, weight, bias, _ = task
    loss, grads = fastce.linear_cross_entropy_with_grad(
        np.nan * hidden, weight, np.zeros(30, int), bias=bias, class_weight=[0.0] * 11,
        on_empty="zero", upstream=np.inf,
    )  # fmt: skip
    assert loss == 0
    assert not any(grad.any() for grad in grads)


def test_an_ignored_label_of_any_kind_of_integer(task):
    class Label:
        def __index__(self):
            return -100

    hidden, weight, _, targets = task
    hidden[3], targets[3] = np.nan, -100
    grads = fastce.linear_cross_entropy_with_grad(hidden, weight, targets, ignore_index=Label())[1]
    assert np.isfinite(grads.weight).all()


def test_overflow_is_no_warning():
    """Warnings are errors here. What the products give, inf or NaN, is what comes out."""
    large = np.full((2, 3), 3e38, np.float32)
    with np.errstate(all="raise"):
        loss, grads = fastce.linear_cross_entropy_with_grad(large, large, [0, 1], bias=large[:, 0])
        assert np.isnan(loss)
        assert np.isnan(grads.weight).all()
        halves = np.full((2, 3), 6e4, np.float16)
        fastce.linear_cross_entropy_with_grad(halves, halves, [0, 1], upstream=1e300)
        fastce.info_nce_with_grad(halves, large)


def test_the_logits_are_never_all_there(rng, monkeypatch):
    monkeypatch.setattr(_linear, "BLOCK", 1 << 16)
    hidden, weight = rng.normal(size=(2000, 3)), rng.normal(size=(1000, 3))
    targets = rng.integers(0, 1000, 2000)
    tracemalloc.start()
    fastce.linear_cross_entropy_with_grad(hidden, weight, targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 1000 * 8 / 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": np.ones((3, 4))}, ValueError, r"weight must have shape \(n_classes, 4\)"),
        ({"hidden": np.ones((3, 0))}, ValueError, "hidden must have shape"),
        ({"hidden": "x"}, TypeError, "hidden must be float16"),
        ({"weight": np.ones(5)}, ValueError, "weight must have shape"),
        ({"weight": np.ones((0, 5))}, ValueError, "weight must have shape"),
        ({"weight": np.ones((11, 5), complex)}, TypeError, "weight must be float16"),
        ({"bias": np.ones(10)}, ValueError, r"bias must have shape \(11,\), got \(10,\)"),
        (
            {"targets": np.ones(29, int)},
            ValueError,
            r"targets must have shape \(30,\) \(the rows of hidden @ weight.T",
        ),
        ({"on_empty": np.array(["raise", "nan"])}, TypeError, "on_empty must be a str"),
        ({"targets": np.ones((30, 11))}, TypeError, "targets must be integers"),
        ({"targets": np.arange(30)}, ValueError, r"targets\[11\] is 11, outside \[0, 11\)"),
        ({"class_weight": np.ones(10)}, ValueError, r"class_weight must have shape \(11,\)"),
        ({"sample_weight": np.ones(10)}, ValueError, r"sample_weight must have shape \(30,\)"),
        (
            {"sample_weight": np.full(30, 1e-310)},
            ValueError,
            "sample_weight must have a finite sum",
        ),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must be"),
        ({"reduction": "avg"}, ValueError, "reduction must be"),
        ({"on_empty": "none"}, ValueError, "on_empty must be"),
        ({"normalizer": 0}, ValueError, "normalizer must be"),
        ({"upstream": np.ones(30)}, ValueError, "upstream must be a number unless"),
        ({"upstream": np.ones(3), "reduction": "none"}, ValueError, "upstream must be a number or"),
        ({"n_threads": 0}, ValueError, "n_threads must be"),
    ],
)
def test_wrong_arguments_are_named(task, change, error, message):
    arguments = dict(zip(("hidden", "weight", "bias", "targets"), task, strict=True)) | change
    with pytest.raises(error, match=message) as caught:
        fastce.linear_cross_entropy_with_grad(**arguments)
    assert "\n" not in str(caught.value)


# InfoNCE


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("n_keys", [6, 9])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_pairs(rng, normalize, n_keys, reduction):
    """The value by its formula, the gradients by central differences, of error 1e-5**2."""
    queries, keys = rng.normal(size=(6, 4)), rng.normal(size=(n_keys, 4))
    upstream = np.linspace(1, 2, 6) if reduction == "none" else 2.0
    options = {"temperature": 0.5, "normalize": normalize, "reduction": reduction}

    def value(q, k):
        if normalize:
            q = q / np.linalg.norm(q, axis=1, keepdims=True)
            k = k / np.linalg.norm(k, axis=1, keepdims=True)
        return fastce.cross_entropy(q @ k.T / 0.5, np.arange(6), reduction=reduction)

    loss, grads = fastce.info_nce_with_grad(queries, keys, upstream=upstream, **options)
    np.testing.assert_allclose(loss, value(queries, keys), rtol=1e-12)
    np.testing.assert_array_equal(fastce.info_nce(queries, keys, **options), loss)
    for grad, i in ((grads.queries, 0), (grads.keys, 1)):
        arrays = [queries, keys]
        for at in np.ndindex(grad.shape):
            step = np.zeros(grad.shape)
            step[at] = 1e-5
            ends = [
                value(*(a + sign * step if k == i else a for k, a in enumerate(arrays)))
                for sign in (1, -1)
            ]
            slope = np.sum(upstream * (ends[0] - ends[1])) / 2e-5
            assert grad[at] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_a_row_of_zeros_is_far_from_all_alike(rng):
    queries, keys = np.zeros((2, 3), np.float32), rng.normal(size=(2, 3)).astype(np.float32)
    loss, grads = fastce.info_nce_with_grad(queries, keys)
    assert loss == pytest.approx(np.log(2))
    assert loss.dtype == grads.keys.dtype == np.float32
    assert not grads.queries.any()
    assert not grads.keys.any()


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-300, 1e-160, 1e160, 1e300])
def test_lengths_of_any_size(rng, size):
    """Of the smallest there is, directions are of a few whole numbers."""
    queries, keys = rng.integers(-5, 6, (2, 4, 3)) + np.eye(4, 3) * 7.0
    expected, same = fastce.info_nce_with_grad(queries, keys)
    loss, grads = fastce.info_nce_with_grad(queries * size, keys * size)
    assert loss == pytest.approx(expected, rel=1e-13)
    if size >= 1e-300:  # else gradients are larger than all numbers
        for found, exact in zip(grads, same, strict=True):
            np.testing.assert_allclose(found * size, exact, rtol=1e-9, atol=1e-12)


def test_a_temperature_of_any_size(rng):
    queries, keys = rng.normal(size=(2, 4, 3))
    assert fastce.info_nce(queries, keys, temperature=1e30) == pytest.approx(np.log(4))
    assert fastce.info_nce(queries, queries, temperature=1e-30) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"queries": np.ones(3)}, ValueError, "queries must have shape"),
        ({"keys": np.ones((1, 3))}, ValueError, "keys must have shape .* m at least 2"),
        ({"keys": np.ones((2, 4))}, ValueError, r"keys must have shape \(m, 3\)"),
        ({"temperature": 0}, ValueError, "temperature must be"),
        ({"temperature": "1"}, TypeError, "temperature must be"),
        ({"normalize": 1}, TypeError, "normalize must be a bool"),
        ({"reduction": None}, TypeError, "reduction must be a str"),
    ],
)
def test_wrong_pairs_are_named(change, error, message):
    arguments = {"queries": np.ones((2, 3)), "keys": np.ones((2, 3))} | change
    with pytest.raises(error, match=message):
        fastce.info_nce_with_grad(**arguments)
