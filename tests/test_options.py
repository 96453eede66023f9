"""Every option of cross_entropy, alone and with every other, as the oracle has it."""

from itertools import product

import numpy as np
import pytest
import reference
from reference import assert_close

import fastce

# The options of the whole contract.
VALUES = {
    "class_weight": [None, "random"],
    "sample_weight": [None, "random"],
    "where": [None, "rows", "classes"],
    "label_smoothing": [0.0, 0.1, 1.0],
    "logit_scale": [1.0, 0.7],
    "softcap": [None, 3.0],
    "z_loss": [0.0, 0.01],
}
REDUCTIONS = [
    {"reduction": "none"},
    {"reduction": "none", "upstream": "random"},
    {"reduction": "sum"},
    {"reduction": "mean"},
    {"reduction": "mean", "normalizer": 7.5, "upstream": 0.3},
    {"reduction": "mean", "on_empty": "zero"},
]

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def draw(rng, soft, axis, shape):
    x = rng.normal(size=shape) * 3
    rows, n_classes = tuple(np.delete(shape, axis)), shape[axis]
    y = rng.integers(0, n_classes, rows)
    y.flat[-1] = -100
    soft_targets = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.7)
    kept = rng.uniform(size=shape) < 0.7
    np.put_along_axis(kept, np.expand_dims(np.maximum(y, 0), axis), True, axis)
    arrays = {
        "class_weight": rng.uniform(0.1, 2, n_classes),
        "sample_weight": rng.uniform(0.1, 2, rows),
        "upstream": rng.normal(size=rows),
        "rows": rng.uniform(size=rows) < 0.7,
        "classes": kept,
    }
    arrays["sample_weight"].flat[1] = 0
    return x, (soft_targets * kept if soft else y), arrays


def filled_in(options, arrays):
    """Replace the words of VALUES and REDUCTIONS by arrays."""
    for name, value in options.items():
        if name in ("class_weight", "sample_weight", "upstream") and value == "random":
            options[name] = arrays[name]
        elif name == "where" and value is not None:
            options[name] = arrays[value]


@dtypes
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
def test_all_combinations(reduction, soft, axis, dtype, rng):
    """All 288 of the options above, for each reduction, kind of target, axis and dtype."""
    x, targets, arrays = draw(rng, soft, axis, (6, 5) if axis == -1 else (2, 5, 3))
    x = x.astype(dtype)
    for values in product(*VALUES.values()):
        options = {"axis": axis, **dict(zip(VALUES, values, strict=True)), **reduction}
        filled_in(options, arrays)
        expected_loss, expected_grad, _ = reference.cross_entropy(x, targets, **options)
        loss, grad = fastce.cross_entropy_with_grad(x, targets, **options)
        assert loss.dtype == grad.dtype == dtype
        assert_close(loss, expected_loss, dtype)
        assert_close(grad, expected_grad, dtype)
        options.pop("upstream", None)
        np.testing.assert_array_equal(fastce.cross_entropy(x, targets, **options), loss)


PATHS = {  # shape and class axis: lanes are rows, classes, or places; whole vectors and tails
    "two classes": ((37, 2), -1),
    "few classes": ((37, 9), -1),
    "long rows": ((5, 130), -1),
    "rows beyond a block": ((3, 2500), -1),
    "two channels": ((2, 2, 70), 1),
    "few channels": ((2, 9, 70), 1),
    "many channels": ((2, 130, 19), 1),
    "classes first": ((33, 40), 0),
    "an image": ((2, 5, 6, 7), 1),
}


@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("path", PATHS)
def test_combinations_on_every_path(path, soft, dtype, isa, rng):
    """Two dozen of all combinations where the kernels have their own loops; in place too."""
    shape, axis = PATHS[path]
    x, targets, arrays = draw(rng, soft, axis, shape)
    x = x.astype(dtype)
    for _ in range(24):
        options = {name: values[rng.integers(len(values))] for name, values in VALUES.items()}
        options |= {"axis": axis, **REDUCTIONS[rng.integers(len(REDUCTIONS))]}
        filled_in(options, arrays)
        expected_loss, expected_grad, _ = reference.cross_entropy(x, targets, **options)
        loss, grad = fastce.cross_entropy_with_grad(x, targets, **options)
        assert_close(loss, expected_loss, dtype)
        assert_close(grad, expected_grad, dtype)
        inplace = x.copy()
        loss_again, _ = fastce.cross_entropy_with_grad(
            inplace, targets, **options, out=inplace, n_threads=3
        )
        np.testing.assert_array_equal(loss_again, loss)
        np.testing.assert_array_equal(inplace, grad)


@dtypes
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_second_derivative_of_all_combinations(reduction, soft, axis, dtype, rng):
    x, targets, arrays = draw(rng, soft, axis, (6, 5) if axis == -1 else (2, 5, 3))
    x = x.astype(dtype)
    for values in product(*VALUES.values()):
        options = {"axis": axis, "reduction": reduction, **dict(zip(VALUES, values, strict=True))}
        filled_in(options, arrays)
        expected = reference.cross_entropy(x, targets, **options)
        actual = fastce.cross_entropy_with_grad_hess(x, targets, **options)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype)


@dtypes
def test_the_second_derivative_of_a_confident_row(dtype, isa):
    """p (1 - p) from the two parts: 1 - p is the sum of the others, never 1 - p."""
    x = np.zeros((60, 7), dtype)
    x[:, 2] = np.arange(1, 61)
    _, _, expected = reference.cross_entropy(x, np.arange(60) % 7, reduction="none")
    hess = fastce.cross_entropy_with_grad_hess(x, np.arange(60) % 7, reduction="none")[2]
    assert reference.ulp_error(hess, expected, dtype) <= (8 if dtype == np.float64 else 4)


@pytest.mark.parametrize("n_classes", [3, 300])
def test_a_second_derivative_whose_factor_is_no_float(n_classes, isa):
    """p (1 - p) brings it down to one, at the largest logit, too."""
    x = np.zeros((1, n_classes), np.float32)
    x[0, 1] = 0.01
    p = np.exp(x.astype(np.float64))
    p /= p.sum()
    hess = fastce.cross_entropy_with_grad_hess(x, [0], reduction="none", upstream=[8e38])[2]
    assert reference.ulp_error(hess, 8e38 * p * (1 - p), np.float32) <= 6


@pytest.mark.parametrize("n_classes", [3, 120])  # either way of the kernels
@pytest.mark.parametrize("hidden", [-np.inf, np.nan])
def test_the_second_derivative_of_a_hidden_class_under_a_cap_is_zero(hidden, n_classes, isa):
    x = np.zeros((4, n_classes))
    x[:, 1] = hidden
    hess = fastce.cross_entropy_with_grad_hess(x, [0] * 4, where=x == 0, softcap=5.0)[2]
    assert not hess[:, 1].any()
    assert (hess[:, 0] > 0).all()


# ---------- the fine print


@dtypes
@pytest.mark.parametrize("n_classes", [2, 9, 16, 100, 113, 130, 1000, 2500])
def test_a_hidden_class_equals_a_class_at_minus_infinity(n_classes, dtype, isa, rng):
    """And may hold NaN, wherever the mask's bytes lie."""
    x = rng.normal(size=(40, n_classes)).astype(dtype)
    y = rng.integers(0, n_classes, 40)
    kept = rng.uniform(size=x.shape) < 0.6
    kept[3] = True
    masked = np.where(kept, x, -np.inf)
    there = kept.any(1)
    expected = fastce.cross_entropy_with_grad(masked[there], y[there], reduction="none")
    hidden = np.where(kept, x, np.nan).astype(dtype)
    for where in (kept, np.asfortranarray(kept), np.repeat(kept, 3, 1)[:, ::3], np.tile(kept, 2)):
        where = where[:, :n_classes]
        actual = fastce.cross_entropy_with_grad(hidden, y, where=where, reduction="none")
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a[there], e)
            assert not a[~there].any()


@dtypes
@pytest.mark.parametrize("n_classes", [2, 9, 16, 100, 113, 130, 1000, 2500])
def test_a_scale_equals_scaled_logits(n_classes, dtype, isa, rng):
    """Bit for bit, by a power of two; rows that are not there may hold anything."""
    x = rng.normal(size=(70, n_classes)).astype(dtype)
    y = rng.integers(0, n_classes, 70)
    y[rng.uniform(size=70) < 0.2] = -100
    loss, grad = fastce.cross_entropy_with_grad(x * 4, y, reduction="none")
    x[y < 0] = rng.choice([np.nan, np.inf, -np.inf, 3e38], size=(np.sum(y < 0), n_classes))
    actual = fastce.cross_entropy_with_grad(x, y, logit_scale=4.0, reduction="none")
    np.testing.assert_array_equal(actual[0], loss)
    np.testing.assert_array_equal(actual[1], grad * 4)


def test_a_row_without_a_class_or_hidden_is_not_there():
    x = np.full((3, 4), np.nan, np.float32)
    x[1] = 0
    classes = np.ones((3, 4), bool)
    classes[[0, 2]] = False
    for where in (classes, [False, True, False]):
        loss, grad = fastce.cross_entropy_with_grad(x, [1, 1, 1], where=where)
        np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
        assert not grad[[0, 2]].any()
        assert grad[1].any()


@dtypes
def test_smoothing_spreads_over_the_classes_left(dtype):
    """By either mask: a class at -inf costs nothing, where PyTorch's loss would be inf."""
    x = np.array([[1, 2, 3, 4]], dtype)
    kept = np.array([[True, True, False, True]])
    expected = fastce.cross_entropy_with_grad(x[:, [0, 1, 3]], [1], label_smoothing=0.3)
    by_where = fastce.cross_entropy_with_grad(x, [1], where=kept, label_smoothing=0.3)
    by_inf = fastce.cross_entropy_with_grad(np.where(kept, x, -np.inf), [1], label_smoothing=0.3)
    for loss, grad in (by_where, by_inf):
        np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
        np.testing.assert_allclose(grad[:, [0, 1, 3]], expected[1], rtol=1e-6)
        assert grad[0, 2] == 0


@dtypes
@pytest.mark.parametrize("n_classes", [10, 130, 2500])
def test_smoothing_of_rows_with_and_without_classes_at_minus_infinity(n_classes, dtype, isa, rng):
    """Rows without one take a shorter way, whatever their neighbours take."""
    x = (rng.normal(size=(73, n_classes)) * 3).astype(dtype)
    x[64::3, 3::7] = -np.inf
    x[68, n_classes - 1] = np.nan
    y = rng.integers(0, (n_classes + 5) // 7, 73) * 7 + 1
    options = {"label_smoothing": 0.1, "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
    assert np.isnan(loss[68])
    assert np.isnan(grad[68]).all()
    assert not grad[64::3, 3::7].any()
    sound = np.arange(73) != 68
    expected_loss, expected_grad, _ = reference.cross_entropy(x[sound], y[sound], **options)
    assert_close(loss[sound], expected_loss, dtype)
    assert_close(grad[sound], expected_grad, dtype)
    for i in range(73):
        alone, its_grad = fastce.cross_entropy_with_grad(x[i : i + 1], y[i : i + 1], **options)
        np.testing.assert_array_equal(alone[0], loss[i])
        np.testing.assert_array_equal(its_grad[0], grad[i])


@pytest.mark.parametrize("n_classes", [10, 130, 3000])
@pytest.mark.parametrize("offset", [1e5, 1e12, 1e30])
def test_smoothing_of_large_logits(offset, n_classes, isa):
    """All equal but one, which is a float lower: their sum is exact."""
    x = np.full((2, n_classes), offset, np.float32)
    x[1, 3] = np.nextafter(x[1, 3], np.float32(0))
    options = {"label_smoothing": 0.1, "reduction": "none"}
    expected, _, _ = reference.cross_entropy(x, [0, 0], **options)
    loss = fastce.cross_entropy(x, [0, 0], **options)
    assert reference.ulp_error(loss, expected, np.float32) <= reference.LOSS_ULP[np.float32]


def test_weights_without_a_finite_sum_are_fine_with_another_divisor():
    x, weights = [[20.0, 0.0]] * 4, [1e308] * 4
    loss = fastce.cross_entropy(x, [0] * 4, sample_weight=weights, normalizer=1e300)
    np.testing.assert_allclose(loss, 4e8 * np.log1p(np.exp(-20.0)), rtol=1e-14)


@dtypes
@pytest.mark.parametrize("n_classes", [10, 130, 3000])
def test_z_loss_whose_share_cancels_the_loss(n_classes, dtype, isa):
    """w + 2 z lse = 0: no class has a gradient but the target, which has all of it."""
    x = np.full((3, n_classes), -1e4, dtype)
    x[:, 0] = -64
    _, grad = fastce.cross_entropy_with_grad(x, [1] * 3, z_loss=1 / 128, reduction="none")
    expected = np.zeros_like(grad)
    expected[:, 1] = -1
    np.testing.assert_array_equal(grad, expected)


@dtypes
def test_a_hidden_label_costs_infinity(dtype):
    x, kept = np.zeros((1, 3), dtype), np.array([[True, False, True]])
    for targets in ([1], np.array([[0, 1, 0]], dtype)):
        loss, grad = fastce.cross_entropy_with_grad(x, targets, where=kept)
        assert loss == np.inf
        np.testing.assert_allclose(grad, [[0.5, -1, 0.5]], rtol=1e-6)
    hidden = np.array([[0, -np.inf, 0]], dtype)
    for logits, where in ((x, kept), (hidden, None)):
        loss, grad = fastce.cross_entropy_with_grad(logits, [1], where=where, label_smoothing=0.1)
        assert loss == np.inf
        np.testing.assert_allclose(grad, [[0.45, -0.9, 0.45]], rtol=1e-6)


@dtypes
def test_soft_targets_with_masked_classes(dtype):
    """0 * -inf = 0, where PyTorch and optax have NaN."""
    x = np.array([[0, -np.inf, 0]], dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, np.array([[0.25, 0, 0.75]], dtype))
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad, [[0.25, 0, -0.25]], rtol=1e-6)


@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["smoothed", "soft"])
@pytest.mark.parametrize("n_classes", [2500, 50_257])
def test_dense_targets_do_not_drift_with_the_number_of_classes(n_classes, soft, dtype, isa, rng):
    """Adding up 50,000 equal parts of mass would be wrong by 25 ulp of a double."""
    x = (3 * rng.normal(size=(3, n_classes))).astype(dtype)
    targets = rng.dirichlet(np.ones(n_classes), 3) if soft else rng.integers(0, n_classes, 3)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    expected_loss, expected_grad, _ = reference.cross_entropy(x, targets, **options)
    loss, grad = fastce.cross_entropy_with_grad(x, targets, **options)
    assert reference.ulp_error(loss, expected_loss, dtype) <= reference.LOSS_ULP[dtype]
    assert_close(grad, expected_grad, dtype)


def test_scale_then_cap_then_mask():
    """z = c tanh(s x / c), and -inf stays -inf."""
    x = np.array([[2.0, -np.inf, 0.5]])
    z = np.array([[4 * np.tanh(1.5 * 2 / 4), -np.inf, 4 * np.tanh(1.5 * 0.5 / 4)]])
    loss, grad = fastce.cross_entropy_with_grad(x, [2], logit_scale=1.5, softcap=4.0)
    np.testing.assert_allclose(loss, fastce.cross_entropy(z, [2]), rtol=1e-14)
    assert grad[0, 1] == 0


@dtypes
def test_a_saturated_cap_still_has_its_slope(dtype, isa):
    """1 - tanh**2 is 4 e / (1 + e)**2 with e = exp(-2 |x| / cap), and not 0 from x = 9 cap on.

    The loss and p are off by the rounding of z, |z| / 2 ulp; the slope by less.
    """
    x = np.zeros((40, 3), dtype)
    x[:, 0] = np.linspace(-600, 600, 40)
    y = np.arange(40) % 3
    _, expected, _ = reference.cross_entropy(x, y, softcap=30.0, reduction="none")
    _, grad = fastce.cross_entropy_with_grad(x, y, softcap=30.0, reduction="none")
    rtol = 64 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(grad), np.float64(expected), rtol=rtol, atol=1e-44)


@pytest.mark.parametrize("rows", [0, 3])
def test_on_empty(rows):
    x, y = np.ones((rows, 4)), np.full(rows, -100)
    for on_empty, expected in (("nan", np.nan), ("zero", 0.0)):
        loss, grad = fastce.cross_entropy_with_grad(x, y, on_empty=on_empty)
        np.testing.assert_equal(float(loss), expected)
        assert grad.shape == x.shape
        assert not grad.any()
    with pytest.raises(ValueError, match="on_empty"):
        fastce.cross_entropy(x, y, on_empty="raise")
    for reduction in ("none", "sum"):  # there is no mean to be empty
        assert not np.any(fastce.cross_entropy(x, y, on_empty="raise", reduction=reduction))


def test_on_empty_speaks_when_no_weight_is_left():
    x, options = np.ones((2, 3)), {"class_weight": [1, 0, 1]}
    loss, grad = fastce.cross_entropy_with_grad(x, [1, 1], on_empty="zero", **options)
    assert loss == 0
    assert not grad.any()
    with pytest.raises(ValueError, match="on_empty"):
        fastce.cross_entropy(x, [1, 1], on_empty="raise", **options)


def test_normalizer_makes_micro_batches_add_up(rng):
    """What a mean of means gets wrong."""
    x = rng.normal(size=(10, 4))
    y = rng.integers(0, 4, 10)
    whole = fastce.cross_entropy_with_grad(x, y)
    parts = [
        fastce.cross_entropy_with_grad(x[rows], y[rows], normalizer=10)
        for rows in (slice(0, 3), slice(3, 10))
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in parts), whole[0], rtol=1e-14)
    np.testing.assert_allclose(np.concatenate([g for _, g in parts]), whole[1], rtol=1e-14)


def one_hot(y, n_classes, dtype):
    return (np.arange(n_classes) == y[:, None]).astype(dtype)


@dtypes
def test_one_hot_targets_equal_labels(dtype, isa, rng):
    """From hopeless to confident rows: the gradient at a one is minus the others, never p - 1.

    With class weights too, but for the mean's divisor, as in PyTorch.
    """
    x = (rng.normal(size=(33, 9)) * np.linspace(1, 40, 33)[:, None]).astype(dtype)
    y = rng.integers(0, 9, 33)
    options = {"class_weight": rng.uniform(size=9), "sample_weight": rng.uniform(size=33)}
    for smoothing, reduction in product((0.0, 0.2), ("none", "sum")):
        hard, soft = (
            fastce.cross_entropy_with_grad(
                x, t, label_smoothing=smoothing, reduction=reduction, **options
            )
            for t in (y, one_hot(y, 9, dtype))
        )
        assert_close(soft[0], hard[0], dtype)
        if smoothing == 0:
            assert reference.ulp_error(soft[1], hard[1], dtype) <= 2 * reference.GRAD_ULP[dtype]
        else:
            assert_close(soft[1], hard[1], dtype)
    mean = fastce.cross_entropy(x, one_hot(y, 9, dtype), **options)
    total = fastce.cross_entropy(x, y, reduction="sum", **options)
    np.testing.assert_allclose(mean, total / options["sample_weight"].sum(), rtol=1e-6)


@pytest.mark.parametrize("target_dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_soft_targets_of_any_float_dtype(target_dtype, isa, rng):
    x = rng.normal(size=(20, 10)).astype(np.float32)
    t = np.round(rng.uniform(size=(20, 10)) * 16) / 16  # exact in every dtype
    expected_loss, expected_grad = fastce.cross_entropy_with_grad(x, t.astype(np.float32))
    loss, grad = fastce.cross_entropy_with_grad(x, t.astype(target_dtype))
    assert_close(loss, expected_loss, np.float32)
    assert_close(grad, expected_grad, np.float32)


def test_upstream_scales_the_gradient_and_not_the_loss(rng):
    x = rng.normal(size=(6, 4))
    y = rng.integers(0, 4, 6)
    loss, grad = fastce.cross_entropy_with_grad(x, y)
    scaled_loss, scaled_grad = fastce.cross_entropy_with_grad(x, y, upstream=-0.5)
    assert scaled_loss == loss
    np.testing.assert_array_equal(scaled_grad, -0.5 * grad)
    factors = rng.normal(size=6)
    _, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    _, scaled_grad = fastce.cross_entropy_with_grad(x, y, reduction="none", upstream=factors)
    np.testing.assert_allclose(scaled_grad, grad * factors[:, None], rtol=1e-15)


# ---------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": -0.1}, "label_smoothing.*-0.1"),
        ({"label_smoothing": 1.1}, "label_smoothing.*1.1"),
        ({"label_smoothing": 10**400}, "label_smoothing.*1000"),
        ({"sample_weight": [1e308] * 4}, "sample_weight.*finite sum.*inf"),
        ({"label_smoothing": np.nan}, "label_smoothing.*nan"),
        ({"label_smoothing": "0.1"}, "label_smoothing"),
        ({"label_smoothing": None}, "label_smoothing"),
        ({"logit_scale": 0.0}, "logit_scale.*0"),
        ({"logit_scale": 1e-31}, r"logit_scale.*\[1e-30, 1e\+30\], got 1e-31"),
        ({"softcap": 1e-31}, r"softcap.*\[1e-30, 1e\+30\], got 1e-31"),
        ({"logit_scale": -1.0}, "logit_scale.*-1"),
        ({"logit_scale": np.inf}, "logit_scale.*inf"),
        ({"logit_scale": np.nan}, "logit_scale.*nan"),
        ({"softcap": 0.0}, "softcap.*0"),
        ({"softcap": -3}, "softcap.*-3"),
        ({"softcap": np.inf}, "softcap.*inf"),
        ({"softcap": np.nan}, "softcap.*nan"),
        ({"softcap": "3"}, "softcap"),
        ({"z_loss": np.nan}, "z_loss.*nan"),
        ({"z_loss": "a"}, "z_loss"),
        ({"normalizer": 0}, "normalizer.*0"),
        ({"normalizer": -2.0}, "normalizer.*-2"),
        ({"normalizer": np.nan}, "normalizer.*nan"),
        ({"normalizer": np.inf}, "normalizer.*inf"),
        ({"normalizer": 2.0, "reduction": "sum"}, "normalizer.*mean"),
        ({"normalizer": 2.0, "reduction": "none"}, "normalizer.*mean"),
        ({"on_empty": "none"}, "on_empty.*'none'"),
        ({"on_empty": None}, "on_empty"),
        ({"where": np.ones(3, bool)}, "where"),
        ({"where": np.ones((4, 9), bool)}, "where"),
        ({"where": np.ones((4, 1), bool)}, "where"),
        ({"where": np.ones(4)}, "where"),
        ({"where": np.ones(4, int)}, "where"),
        ({"where": "x"}, "where"),
        ({"axis": 2}, "axis.*2"),
        ({"axis": -3}, "axis.*-3"),
        ({"axis": 1.0}, "axis"),
        ({"axis": None}, "axis"),
        ({"axis": (0, 1)}, "axis"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_and_nothing_written(options, message):
    x, out = np.zeros((4, 10), np.float32), np.full((4, 10), 7, np.float32)
    with pytest.raises((ValueError, TypeError), match=message) as info:
        fastce.cross_entropy_with_grad(x, [1, 2, 3, 4], out=out, **options)
    assert (out == 7).all()
    assert "\n" not in str(info.value)
    with pytest.raises((ValueError, TypeError), match=message):
        fastce.cross_entropy(x, [1, 2, 3, 4], **options)


@pytest.mark.parametrize(
    "options",
    [
        {"upstream": np.ones(4)},
        {"upstream": np.ones(3), "reduction": "none"},
        {"upstream": np.ones((4, 10)), "reduction": "none"},
        {"upstream": "a"},
        {"upstream": [1j] * 4, "reduction": "none"},
        {"upstream": np.ones(4), "reduction": "sum"},
    ],
    ids=str,
)
def test_a_bad_upstream_is_refused(options):
    out = np.full((4, 10), 7, np.float32)
    with pytest.raises((ValueError, TypeError), match="upstream"):
        fastce.cross_entropy_with_grad(np.zeros((4, 10), np.float32), [1] * 4, out=out, **options)
    assert (out == 7).all()


@pytest.mark.parametrize(
    "targets", [np.ones((4, 9)), np.ones((4, 1)), np.ones((3, 10)), np.ones(10)]
)
def test_soft_targets_have_the_shape_of_the_logits(targets):
    with pytest.raises((TypeError, ValueError), match=r"targets.*\(4, 10\)"):
        fastce.cross_entropy(np.zeros((4, 10)), targets)


@pytest.mark.parametrize("ignore_index", [0, 3, -1, None])
def test_soft_targets_have_no_label_to_ignore(ignore_index):
    """Only the default passes; any other number is an error.  None ignores nothing, and may."""
    x, t = np.zeros((4, 10)), np.full((4, 10), 0.1)
    if ignore_index is None:
        assert fastce.cross_entropy(x, t, ignore_index=None) == fastce.cross_entropy(x, t)
    else:
        with pytest.raises(ValueError, match="ignore_index"):
            fastce.cross_entropy(x, t, ignore_index=ignore_index)


def test_the_curvature_of_a_tiny_cap_is_no_nan():
    for n_classes in (3, 130):
        x = np.arange(n_classes, dtype=np.float32)[None]
        hess = fastce.cross_entropy_with_grad_hess(x, [0], softcap=1e-25)[2]
        assert np.isfinite(hess).all()


@dtypes
@pytest.mark.parametrize("n_classes", [3, 10, 112, 113, 300])
def test_a_logit_that_its_scale_takes_to_minus_infinity_is_hidden(n_classes, dtype, isa):
    """Also where smoothing counts the classes that are left."""
    x = np.zeros((4, n_classes), dtype)
    x[:, 1 : n_classes // 2 + 1] = np.finfo(dtype).min
    hidden = np.where(x < 0, -np.inf, x).astype(dtype)
    options = {"logit_scale": 2.0, "label_smoothing": 0.5, "reduction": "none"}
    y = np.zeros(4, int)
    for actual, expected in zip(
        fastce.cross_entropy_with_grad(x, y, **options),
        fastce.cross_entropy_with_grad(hidden, y, **options),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


@dtypes
@pytest.mark.parametrize("n_classes", [3, 10, 112, 113, 300])
def test_a_cap_holds_a_logit_that_its_scale_takes_to_infinity(n_classes, dtype, isa):
    x = np.zeros((2, n_classes), dtype)
    x[0, 1], x[1, 1] = np.finfo(dtype).min, -np.inf
    y = np.array([1, 1])
    options = {"softcap": 100.0, "reduction": "none", "label_smoothing": 0.1}
    actual = fastce.cross_entropy_with_grad_hess(x, y, logit_scale=10.0, **options)
    expected = fastce.cross_entropy_with_grad_hess(x, y, **options)
    np.testing.assert_array_equal(actual[0], expected[0])
    assert np.isfinite(actual[0]).tolist() == [True, False]
    np.testing.assert_allclose(actual[1], 10 * expected[1], rtol=1e-5)
