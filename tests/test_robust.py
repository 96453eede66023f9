"""The robust losses: functions of the label's probability alone, as the oracle has them."""

import numpy as np
import pytest
import reference
from reference import assert_close

import fastce

LOSSES = [
    ("focal_loss", {}),
    ("focal_loss", {"gamma": 0.5, "alpha": 0.25}),
    ("focal_loss", {"gamma": 0.0}),
    ("generalized_cross_entropy", {}),
    ("generalized_cross_entropy", {"q": 1.0}),
    ("generalized_cross_entropy", {"q": 0.01}),
    ("symmetric_cross_entropy", {}),
    ("symmetric_cross_entropy", {"alpha": 0.0, "beta": 2.0, "log_zero": -9.0}),
    ("poly1_loss", {}),
    ("poly1_loss", {"epsilon": -0.5}),
]
losses = pytest.mark.parametrize(("name", "parameters"), LOSSES, ids=str)
names = pytest.mark.parametrize("name", sorted({name for name, _ in LOSSES}))
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def call(name, *args, **options):
    return getattr(fastce, name + "_with_grad")(*args, **options)


@dtypes
@pytest.mark.parametrize("n_classes", [2, 10, 113, 1000])
@pytest.mark.parametrize("q", [5e-324, 1e-320, 1e-300, 1e-19, 1e-17])
def test_a_small_q_is_cross_entropy(q, n_classes, dtype, isa, rng):
    """(1 - p^q) / q, whose q log p may be a subnormal."""
    x, y = (10 * rng.normal(size=(40, n_classes))).astype(dtype), rng.integers(0, n_classes, 40)
    x[:5, 0], y[:5] = 90, 0  # confident
    options = {"reduction": "none"}
    losses, grad = call("generalized_cross_entropy", x, y, q=q, **options)
    expected = fastce.cross_entropy_with_grad(x, y, **options)
    assert_close(losses, expected[0].astype(np.longdouble), dtype)
    assert_close(grad, expected[1].astype(np.longdouble), dtype)


@losses
@dtypes
@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 9), -1), ((11, 130), -1), ((2, 9, 21), 1)], ids=str
)
def test_all_options(shape, axis, name, parameters, dtype, isa, rng):
    """On rows from hopeless to confident, on every path of the kernels."""
    rows, n_classes = tuple(np.delete(shape, axis)), shape[axis]
    x = rng.normal(size=shape) * np.expand_dims(rng.uniform(0.1, 20, rows), axis)
    x = x.astype(dtype)
    y = np.where(rng.uniform(size=rows) < 0.5, x.argmax(axis), rng.integers(0, n_classes, rows))
    y.flat[7] = -100
    kept = rng.uniform(size=shape) < 0.8
    np.put_along_axis(kept, np.expand_dims(np.maximum(y, 0), axis), True, axis)
    for options in (
        {},
        {"reduction": "none", "upstream": rng.normal(size=rows)},
        {"class_weight": rng.uniform(size=n_classes), "sample_weight": rng.uniform(size=rows)},
        {"logit_scale": 0.5, "softcap": 10.0, "reduction": "sum"},
        {"where": kept, "on_empty": "raise", "normalizer": 3},
        {"where": y > 2, "upstream": 0.1},
    ):
        options |= {"axis": axis, **parameters}
        expected_loss, expected_grad = getattr(reference, name)(x, y, **options)
        loss, grad = call(name, x, y, **options)
        assert loss.dtype == grad.dtype == dtype
        assert_close(loss, expected_loss, dtype)
        assert_close(grad, expected_grad, dtype)
        options.pop("upstream", None)
        np.testing.assert_array_equal(getattr(fastce, name)(x, y, **options), loss)


@losses
@dtypes
def test_sure_and_hopeless_rows(name, parameters, dtype, isa):
    """Where p rounds to 1, or to 0: no clip, no NaN, and a masked label has the limit."""
    x = np.zeros((8, 3), dtype)
    x[:, 1] = [20, 40, 80, -20, -40, -80, 0, -np.inf]
    expected = getattr(reference, name)(x, [1] * 8, reduction="none", **parameters)
    actual = call(name, x, [1] * 8, reduction="none", **parameters)
    # p**q takes the rounding of q nll = 80 into the exponent: 80 eps
    rtol = 1e-6 if dtype == np.float32 else 1e-13
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(e), rtol=rtol, atol=1e-37)


@names
@dtypes
def test_one_class(name, dtype):
    loss, grad = call(name, np.ones((3, 1), dtype), [0, 0, 0])
    assert loss == 0
    assert not grad.any()


@dtypes
def test_their_limits_are_cross_entropy(dtype, isa, rng):
    x, y = (5 * rng.normal(size=(40, 9))).astype(dtype), rng.integers(0, 9, 40)
    expected = fastce.cross_entropy_with_grad(x, y)
    for name, parameters in (
        ("focal_loss", {"gamma": 0}),
        ("symmetric_cross_entropy", {"alpha": 1, "beta": 0}),
        ("poly1_loss", {"epsilon": 0}),
    ):
        for a, e in zip(call(name, x, y, **parameters), expected, strict=True):
            assert_close(a, e, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(20, 6), (5, 130)], ids=str)
def test_poly1_of_soft_targets(shape, dtype, isa, rng):
    x = (3 * rng.normal(size=shape)).astype(dtype)
    t = rng.dirichlet(np.ones(shape[1]), shape[0])
    for options in ({}, {"epsilon": 1.5, "class_weight": rng.uniform(size=shape[1])}):
        expected = reference.poly1_loss(x, t, **options)
        for a, e in zip(call("poly1_loss", x, t, **options), expected, strict=True):
            assert_close(a, e, dtype)


@pytest.mark.parametrize(
    ("name", "parameters"), [*LOSSES[:-1], ("focal_loss", {"gamma": 5.0})], ids=str
)
def test_two_classes_are_within_the_contract_of_the_plain_loss(name, parameters, isa, rng):
    """In double throughout, so that powers do not multiply the error of a float's term."""
    x = rng.normal(size=(600, 2)).astype(np.float32)
    x[:, 0] += np.linspace(-90, 90, 600, dtype=np.float32)
    x[7, 0] = x[11, 1] = -np.inf
    y = np.arange(600) % 2
    loss, grad = call(name, x, y, reduction="none", **parameters)
    expected_loss, expected_grad = getattr(reference, name)(x, y, reduction="none", **parameters)
    finite = np.isfinite(expected_loss.astype(float))
    np.testing.assert_array_equal(loss[~finite], expected_loss[~finite].astype(np.float32))
    loss_error = reference.ulp_error(loss[finite], expected_loss[finite], np.float32)
    assert loss_error <= reference.LOSS_ULP[np.float32]
    grad_error = reference.ulp_error(grad, expected_grad, np.float32)
    assert grad_error <= reference.GRAD_ULP[np.float32]


@dtypes
@pytest.mark.parametrize("n_classes", [2, 10, 200])
def test_poly1_of_soft_targets_where_the_row_is_sure(n_classes, dtype, isa):
    """1 - p is not a difference there either: the loss is that of the label."""
    x = np.full((4, n_classes), -1000, dtype)
    x[:, 0], x[:, 1] = [10, 20, 30, 60], 0
    t = np.eye(n_classes)[[0] * 4]
    loss = fastce.poly1_loss(x, t, reduction="none")
    expected, _ = reference.poly1_loss(x, [0] * 4, reduction="none")
    assert reference.ulp_error(loss, expected, dtype) <= reference.LOSS_ULP[dtype]


@dtypes
@pytest.mark.parametrize("n_classes", [10, 200])
def test_poly1_of_soft_targets_with_large_weights(n_classes, dtype, isa, rng):
    """Of the products of a term, a weight and what divides both, none overflows."""
    x = rng.normal(size=(4, n_classes)).astype(dtype)
    x[:, 0], x[:, 1] = 33, 32.9
    t = rng.dirichlet(np.ones(n_classes), 4)
    expected = fastce.poly1_loss_with_grad(x, t, reduction="none")
    weights = {"class_weight": np.full(n_classes, 2.0**40), "upstream": np.full(4, 2.0**-40)}
    loss, grad = fastce.poly1_loss_with_grad(x, t, reduction="none", **weights)
    np.testing.assert_allclose(loss, expected[0] * 2.0**40, rtol=1e-6)
    assert_close(grad, expected[1], dtype)


@losses
@dtypes
@pytest.mark.parametrize("n_classes", [10, 200])
def test_the_loss_alone_has_the_same_bits(n_classes, name, parameters, dtype, isa, rng):
    x = (3 * rng.normal(size=(500, n_classes))).astype(dtype)
    y = rng.integers(0, n_classes, 500)
    loss, _ = call(name, x, y, reduction="none", **parameters)
    alone = getattr(fastce, name)(x, y, reduction="none", **parameters)
    np.testing.assert_array_equal(alone, loss)


@names
def test_in_place(name, isa, rng):
    x, y = rng.normal(size=(20, 9)).astype(np.float32), rng.integers(0, 9, 20)
    loss, grad = call(name, x, y)
    inplace_loss, inplace = call(name, x, y, out=x)
    assert inplace is x
    assert inplace_loss == loss
    np.testing.assert_array_equal(x, grad)


@pytest.mark.parametrize(
    "name", ["focal_loss", "generalized_cross_entropy", "symmetric_cross_entropy"]
)
def test_soft_targets_and_smoothing_are_refused(name):
    for loss in (getattr(fastce, name), getattr(fastce, name + "_with_grad")):
        with pytest.raises((TypeError, ValueError), match="targets"):
            loss(np.zeros((2, 3)), np.full((2, 3), 1 / 3))
        with pytest.raises(TypeError, match="label_smoothing"):
            loss(np.zeros((2, 3)), [0, 1], label_smoothing=0.1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("focal_loss", {"gamma": -1.0}),
        ("focal_loss", {"gamma": np.nan}),
        ("focal_loss", {"alpha": -0.5}),
        ("generalized_cross_entropy", {"q": 0.0}),
        ("generalized_cross_entropy", {"q": 1.5}),
        ("generalized_cross_entropy", {"q": np.nan}),
        ("symmetric_cross_entropy", {"alpha": np.nan}),
        ("symmetric_cross_entropy", {"log_zero": np.nan}),
        ("poly1_loss", {"epsilon": np.nan}),
        ("poly1_loss", {"epsilon": "a"}),
    ],
    ids=str,
)
def test_bad_parameters_are_refused(name, parameters):
    for loss in (getattr(fastce, name), getattr(fastce, name + "_with_grad")):
        with pytest.raises((TypeError, ValueError), match=next(iter(parameters))):
            loss(np.zeros((2, 3)), [0, 1], **parameters)


@names
def test_the_other_arguments_are_checked_as_in_cross_entropy(name):
    x, out = np.zeros((2, 3)), np.full((2, 3), 7.0)
    for options, message in (
        ({"targets": [0, 3]}, r"targets\[1\] is 3, outside \[0, 3\)"),
        ({"class_weight": [1.0]}, "class_weight"),
        ({"reduction": "avg"}, "reduction"),
        ({"axis": 2}, "axis"),
        ({"n_threads": 0}, "n_threads"),
    ):
        with pytest.raises(ValueError, match=message):
            call(name, x, **{"targets": [0, 1], "out": out, **options})
        assert (out == 7).all()


@pytest.mark.parametrize("gamma", [0.5, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("n_classes", [3, 130])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_spoiled_row_is_spoiled_for_any_gamma(n_classes, gamma, dtype, isa):
    x = np.zeros((4, n_classes), dtype)
    x[0, 1], x[1], x[2, 2] = np.inf, -np.inf, -np.nan
    losses, grad = fastce.focal_loss_with_grad(x, [0] * 4, gamma=gamma, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(grad).any(1), [True, True, True, False])


@pytest.mark.parametrize("n_classes", [100, 112, 113, 224, 225])
def test_poly1_of_soft_targets_adds_up_exactly(n_classes, isa, rng):
    """Where a class has no target its gradient is p times a sum over the others."""
    x, q = rng.normal(size=(300, n_classes)), rng.random((300, n_classes))
    x[:, 0] += rng.uniform(0, 60, 300)
    q[:, 3] = 0
    _, grad = fastce.poly1_loss_with_grad(x, q, reduction="none", epsilon=2.0)
    wide = x.astype(np.longdouble)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = p[:, 3] * (q.sum(1, dtype=np.longdouble) + 2 * (q * p).sum(1))
    assert reference.ulp_error(grad[:, 3], expected, np.float64) <= reference.GRAD_ULP[np.float64]


@pytest.mark.parametrize("n_classes", [5, 7, 50, 99, 101, 200, 300])
def test_focal_loss_of_a_label_as_good_as_hidden(n_classes, isa):
    """p is 0 and the loss finite: ce / (1 - p) must not overflow where 1 - p rounds."""
    for others in (0.0, 267.0):
        x = np.full((1, n_classes), others)
        x[0, 1] = np.finfo(np.float64).min
        loss, grad = fastce.focal_loss_with_grad(x, [1], gamma=2.0, reduction="none")
        assert loss[0] == pytest.approx(np.finfo(np.float64).max, rel=1e-15)
        expected = np.full(n_classes, 1 / (n_classes - 1))
        expected[1] = -1
        np.testing.assert_allclose(grad[0], expected, rtol=1e-14)
