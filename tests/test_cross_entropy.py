"""The loss and its gradient, plainly: every size and dtype, weights, ignored rows, reductions."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import reference
from reference import GRAD_ULP, LOSS_ULP

import fastce

# Around every width of a vector, of a block of lanes and of a cache line; then real vocabularies.
N_CLASSES = (1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 65, 100, 111, 112, 113, 127,
             128, 129, 255, 257, 1000, 1023, 1025, 4097, 50257)  # fmt: skip
N_ROWS = (0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 1000)
INTEGERS = [
    "i1",
    "i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    "u8",
    ">i2",
    ">i4",
    ">i8",
    ">u2",
    ">u4",
    ">u8",
]

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def batch(rng, n_rows, n_classes, dtype=np.float32):
    x = rng.normal(size=(n_rows, n_classes)) * rng.choice([0.1, 3, 30], (n_rows, 1))
    return x.astype(dtype), rng.integers(0, n_classes, n_rows)


@cache
def solved(n_classes, dtype):
    """As many rows as a test asks for at most, fewer of the long ones, and the oracle's answer."""
    n_rows = min(max(N_ROWS), 100_000 // n_classes + 1)
    x, y = batch(np.random.default_rng(n_classes), n_rows, n_classes, dtype)
    return x, y, *reference.cross_entropy(x, y, reduction="none")[:2]


@dtypes
@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_every_size(n_classes, dtype, isa):
    x, y, loss, grad = solved(n_classes, dtype)
    for n in N_ROWS:
        if n <= len(x):
            actual_loss, actual_grad = fastce.cross_entropy_with_grad(
                x[:n], y[:n], reduction="none"
            )
            assert actual_loss.shape == (n,)
            assert actual_grad.shape == (n, n_classes)
            assert actual_loss.dtype == actual_grad.dtype == dtype
            assert reference.ulp_error(actual_loss, loss[:n], dtype) <= LOSS_ULP[dtype], f"{n} rows"
            assert reference.ulp_error(actual_grad, grad[:n], dtype) <= GRAD_ULP[dtype], f"{n} rows"


@dtypes
@pytest.mark.parametrize("n_classes", [1, 3, 10, 16, 17, 100, 120, 1025])
def test_the_loss_alone_is_the_loss_beside_the_gradient(n_classes, dtype, isa, rng):
    x, y = batch(rng, 65, n_classes, dtype)
    y[::5] = -100
    options = {"class_weight": rng.uniform(size=n_classes), "sample_weight": rng.uniform(size=65)}
    for reduction, kwargs in product(("none", "sum", "mean"), ({}, options)):
        alone = fastce.cross_entropy(x, y, reduction=reduction, **kwargs)
        beside, _ = fastce.cross_entropy_with_grad(x, y, reduction=reduction, **kwargs)
        np.testing.assert_array_equal(alone, beside)
        assert alone.dtype == beside.dtype == dtype
        assert np.shape(alone) == ((65,) if reduction == "none" else ())


@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("n_classes", [3, 10, 17, 120])
def test_weights_ignored_rows_and_reductions(n_classes, reduction, dtype, isa, rng):
    """Every subset of the four options, against the oracle."""
    x, y = batch(rng, 67, n_classes, dtype)
    values = {
        "class_weight": rng.uniform(0.1, 3, n_classes),
        "sample_weight": rng.uniform(0.1, 3, 67) * (rng.uniform(size=67) < 0.8),
        "ignore_index": int(y[5]),
    }
    for chosen in product([False, True], repeat=3):
        options = {name: values[name] for name, on in zip(values, chosen, strict=True) if on}
        expected_loss, expected_grad, _ = reference.cross_entropy(
            x, y, reduction=reduction, **options
        )
        loss, grad = fastce.cross_entropy_with_grad(x, y, reduction=reduction, **options)
        assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype], options
        assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype], options


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("n_classes", [10, 120])
def test_targets_of_every_integer_dtype(integer, n_classes, isa, rng):
    x, y = batch(rng, 65, n_classes)
    loss, grad = fastce.cross_entropy_with_grad(x, y)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y.astype(integer))
    assert actual_loss == loss
    np.testing.assert_array_equal(actual_grad, grad)


@pytest.mark.parametrize("ignore_index", [-100, 3, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_ignored_rows_of_several_parts_are_counted(ignore_index, stride, rng):
    """A mean divides by the rows that are left, wherever the others are."""
    x, y = rng.normal(size=(1200, 10)), np.repeat(rng.integers(10, size=1200), stride)[::stride]
    y[[1, 600, 601, 1199]] = ignore_index
    left = y != ignore_index
    loss, grad = fastce.cross_entropy_with_grad(x, y, ignore_index=ignore_index)
    expected = fastce.cross_entropy(x[left], y[left], ignore_index=None)
    np.testing.assert_allclose(loss, expected, rtol=1e-15)
    np.testing.assert_array_equal(grad.any(axis=1), left)


@pytest.mark.parametrize("integer", ["i1", "i2", "i4", "i8", ">i4"])
def test_the_default_ignore_index_fits_every_signed_dtype(integer, rng):
    x, y = batch(rng, 20, 10)
    y[::3] = -100
    assert fastce.cross_entropy(x, y.astype(integer)) == fastce.cross_entropy(x, y)


def test_an_ignore_index_beyond_the_dtype_of_the_targets_ignores_nothing(rng):
    """156 is -100 in eight bits, and 2**32 - 100 in 32."""
    x, y = batch(rng, 20, 200)
    y[3] = 156
    expected = fastce.cross_entropy(x, y)
    assert fastce.cross_entropy(x, y.astype(np.uint8)) == expected
    assert fastce.cross_entropy(x, y.astype(np.uint8), ignore_index=2**32 + 156) == expected


def test_bool_targets_are_0_and_1(rng):
    x, y = batch(rng, 20, 2)
    assert fastce.cross_entropy(x, y.astype(bool)) == fastce.cross_entropy(x, y)


def test_any_label_can_be_ignored_or_none(rng):
    x, y = batch(rng, 50, 5)
    without_3 = fastce.cross_entropy(x[y != 3], y[y != 3])
    np.testing.assert_allclose(fastce.cross_entropy(x, y, ignore_index=3), without_3, rtol=3e-7)
    expected = fastce.cross_entropy(x, y)
    assert fastce.cross_entropy(x, y, ignore_index=None) == expected
    assert fastce.cross_entropy(x, y, ignore_index=77) == expected


def test_an_ignored_class_keeps_its_place_in_the_denominator():
    x = np.zeros((2, 4), np.float32)
    loss = fastce.cross_entropy(x, [0, 1], ignore_index=1)
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


@dtypes
def test_a_mean_over_no_row_is_nan_and_its_gradient_zero(dtype):
    """As in PyTorch: for an empty batch, all rows ignored, or all rows of weight 0."""
    x, empty = np.ones((3, 4), dtype), np.zeros((0, 4), dtype)
    for args, kwargs in (
        ((empty, np.zeros(0, int)), {}),
        ((x, [-100] * 3), {}),
        ((x, [0] * 3), {"sample_weight": np.zeros(3)}),
    ):
        loss, grad = fastce.cross_entropy_with_grad(*args, **kwargs)
        assert np.isnan(loss)
        assert loss.dtype == dtype
        assert grad.shape == args[0].shape
        assert not grad.any()
        assert np.isnan(fastce.cross_entropy(*args, **kwargs))
        loss, grad = fastce.cross_entropy_with_grad(*args, reduction="sum", **kwargs)
        assert loss == 0
        assert not grad.any()
        loss, grad = fastce.cross_entropy_with_grad(*args, reduction="none", **kwargs)
        assert loss.shape == args[0].shape[:1]
        assert not loss.any()
        assert not grad.any()


def test_rows_of_a_weightless_class_leave_nan():
    """The rows are there, but nothing divides them: 0 / 0, as in PyTorch."""
    loss, grad = fastce.cross_entropy_with_grad(np.ones((2, 3)), [1, 1], class_weight=[1, 0, 1])
    assert np.isnan(loss)
    assert np.isnan(grad).all()


def test_a_weightless_class_costs_nothing_even_where_it_is_masked():
    x = np.array([[0, -np.inf, 0], [0, 1, 2]], np.float32)
    loss, grad = fastce.cross_entropy_with_grad(x, [1, 0], class_weight=[1, 0, 1], reduction="none")
    assert loss[0] == 0
    assert not grad[0].any()
    assert loss[1] > 0


@dtypes
def test_one_class_is_certain(dtype):
    loss, grad = fastce.cross_entropy_with_grad(np.full((5, 1), 7, dtype), [0] * 5)
    assert loss == 0
    assert not grad.any()


@dtypes
def test_a_single_row_without_a_batch(dtype):
    x = np.array([1, 2, 4], dtype)
    expected_loss, expected_grad = fastce.cross_entropy_with_grad(x[None], [1])
    for target, reduction in product((1, np.int16(1), np.array(1)), ("mean", "sum", "none")):
        loss, grad = fastce.cross_entropy_with_grad(x, target, reduction=reduction)
        assert np.shape(loss) == ()
        assert loss == expected_loss
        assert loss.dtype == dtype
        np.testing.assert_array_equal(grad, expected_grad[0])


@dtypes
def test_any_number_of_leading_axes(dtype, rng):
    x, y = batch(rng, 24, 10, dtype)
    w = rng.uniform(size=24)
    loss, grad = fastce.cross_entropy_with_grad(x, y, sample_weight=w, reduction="none")
    shape = (2, 3, 4)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(
        x.reshape(*shape, 10), y.reshape(shape), sample_weight=w.reshape(shape), reduction="none"
    )
    np.testing.assert_array_equal(actual_loss, loss.reshape(shape))
    np.testing.assert_array_equal(actual_grad, grad.reshape(*shape, 10))
    mean = fastce.cross_entropy(x.reshape(*shape, 10), y.reshape(shape))
    assert mean == fastce.cross_entropy(x, y)


@pytest.mark.parametrize("kind", [list, np.int8, np.int64, np.uint16, bool])
def test_lists_and_integers_become_float64(kind, rng):
    x = rng.integers(0, 2, (5, 4))
    y = rng.integers(0, 4, 5)
    given = x.tolist() if kind is list else x.astype(kind)
    loss, grad = fastce.cross_entropy_with_grad(given, y.tolist())
    expected_loss, expected_grad = fastce.cross_entropy_with_grad(x.astype(np.float64), y)
    assert loss == expected_loss
    assert loss.dtype == grad.dtype == np.float64
    np.testing.assert_array_equal(grad, expected_grad)


@dtypes
@pytest.mark.parametrize("kind", [list, np.float16, np.float32, np.float64, np.int32, ">f8"])
def test_weights_of_any_kind(kind, dtype, rng):
    """Weights need not have the logits' dtype; PyTorch asks for it."""
    x, y = batch(rng, 20, 3, dtype)
    cw, sw = [1, 2, 3], rng.integers(0, 4, 20).tolist()
    expected = fastce.cross_entropy(x, y, class_weight=np.array(cw, dtype), sample_weight=sw)
    if kind is not list:
        cw, sw = np.array(cw).astype(kind), np.array(sw).astype(kind)
    assert fastce.cross_entropy(x, y, class_weight=cw, sample_weight=sw) == expected


@dtypes
def test_known_values(dtype):
    """By hand: log 4 for four equal classes, log 2 for two, and log(1 + e) for a gap of one."""
    one, third = np.zeros((1, 4), dtype), np.array([[0, 1]], dtype)
    np.testing.assert_allclose(fastce.cross_entropy(one, [2]), np.log(4), rtol=1e-7)
    np.testing.assert_allclose(fastce.cross_entropy(third, [0]), np.log1p(np.e), rtol=1e-7)
    _loss, grad = fastce.cross_entropy_with_grad(one, [2])
    np.testing.assert_allclose(grad, [[0.25, 0.25, -0.75, 0.25]], rtol=1e-7)


def test_labels_beyond_what_a_float32_can_count():
    """Labels are never floats: 2**24 + 1 is not 2**24."""
    n_classes = 2**24 + 2
    x = np.zeros((1, n_classes), np.float32)
    x[0, 2**24 + 1] = 30
    loss = fastce.cross_entropy(x, [2**24 + 1])
    assert loss < 1e-4
    assert fastce.cross_entropy(x, [2**24]) > 29


@pytest.mark.parametrize("shape", [(64, 10), (7, 1000)])
def test_inputs_are_not_touched(shape, rng):
    x, y = batch(rng, *shape)
    w, s = rng.uniform(size=shape[1]), rng.uniform(size=shape[0])
    copies = [a.copy() for a in (x, y, w, s)]
    for a in (x, y, w, s):
        a.flags.writeable = False  # so that writing would raise, too
    fastce.cross_entropy_with_grad(x, y, class_weight=w, sample_weight=s)
    for a, copy in zip((x, y, w, s), copies, strict=True):
        np.testing.assert_array_equal(a, copy)
