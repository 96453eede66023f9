"""The gradient is the derivative of the loss, and goes where `out` says."""

import numpy as np
import pytest
import reference

import fastce

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def derivative(loss, x, h=1e-3):
    """Fourth-order central differences of a loss: h**4 / 30 times its fifth derivative off."""
    grad = np.empty(x.shape)
    for i in np.ndindex(x.shape):

        def at(step, i=i):
            moved = x.astype(np.float64)
            moved[i] += step
            return loss(moved)

        grad[i] = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    return grad


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_the_derivative_of_the_loss(weighted, reduction, dtype, isa, rng):
    x = rng.normal(size=(5, 7)).astype(dtype)
    y = np.array([0, 3, -100, 6, 2])
    options = {"reduction": reduction}
    if weighted:
        options.update(class_weight=rng.uniform(size=7), sample_weight=rng.uniform(size=5))
    _, grad = fastce.cross_entropy_with_grad(x, y, **options)
    expected = derivative(lambda x: reference.cross_entropy(x, y, **options)[0], x)
    # h**4 / 30 = 3e-14 for losses of this size, and the longdouble's 1e-19 / h = 1e-16 is less
    atol = 1e-12 if dtype is np.float64 and reference.wide else 1e-6
    np.testing.assert_allclose(grad, expected, atol=atol, rtol=0)


# ---------- out


@pytest.fixture(params=[(64, 10), (33, 3), (5, 1000), (3, 5000)], ids=str)
def case(request, rng):
    """Few classes, long rows, and rows longer than a block."""
    shape = request.param
    x = rng.normal(size=shape).astype(np.float32) * 5
    y = rng.integers(0, shape[1], shape[0])
    y[1] = -100
    return x, y


@dtypes
def test_out_receives_the_gradient(case, dtype, isa):
    x, y = case[0].astype(dtype), case[1]
    loss, grad = fastce.cross_entropy_with_grad(x, y)
    out = np.full(x.shape, np.nan, dtype)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, out=out)
    assert actual_grad is out
    assert actual_loss == loss
    np.testing.assert_array_equal(out, grad)


@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_out_may_be_the_logits(case, reduction, dtype, isa):
    """The label's logit is read before its gradient lands there."""
    x, y = case[0].astype(dtype), case[1]
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction=reduction)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, reduction=reduction, out=x)
    assert actual_grad is x
    np.testing.assert_array_equal(actual_loss, loss)
    np.testing.assert_array_equal(x, grad)


def test_out_may_be_another_view_of_the_logits(case):
    x, y = case
    _, grad = fastce.cross_entropy_with_grad(x, y)
    view = x[:]
    fastce.cross_entropy_with_grad(x, y, out=view)
    np.testing.assert_array_equal(x, grad)


def test_a_wider_out_receives_the_wider_dtype(case, isa):
    """float32 logits and a float64 out: right to float32's contract, the loss unchanged."""
    x, y = case
    loss, _grad = fastce.cross_entropy_with_grad(x, y)
    out = np.empty(x.shape, np.float64)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, out=out)
    assert actual_grad is out
    assert actual_loss == loss
    assert actual_loss.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(out), True)
    assert reference.ulp_error(out, reference.cross_entropy(x, y)[1], np.float32) <= 4


def test_out_of_an_empty_batch():
    out = np.empty((0, 3), np.float32)
    _, grad = fastce.cross_entropy_with_grad(
        np.empty((0, 3), np.float32), np.empty(0, int), out=out
    )
    assert grad is out


def test_out_beside_the_logits_in_one_buffer(isa, rng):
    """Neighbours are not overlap."""
    x = rng.normal(size=(8, 10)).astype(np.float32)
    y = rng.integers(0, 10, 4)
    expected_loss, expected_grad = fastce.cross_entropy_with_grad(x[:4].copy(), y)
    loss, _ = fastce.cross_entropy_with_grad(x[:4], y, out=x[4:])
    assert loss == expected_loss
    np.testing.assert_array_equal(x[4:], expected_grad)


def test_nothing_is_written_around_out(isa, rng):
    """Non-temporal stores and vector tails stay inside, at every alignment."""
    for n_rows, n_classes, start in [(5, 3, 1), (17, 10, 3), (3, 33, 7), (2, 5001, 5), (1, 1, 9)]:
        size = n_rows * n_classes
        x = rng.normal(size=(n_rows, n_classes)).astype(np.float32)
        y = rng.integers(0, n_classes, n_rows)
        buffer = np.full(size + 64, 7, np.float32)
        out = buffer[start : start + size].reshape(n_rows, n_classes)
        fastce.cross_entropy_with_grad(x, y, out=out)
        assert (buffer[:start] == 7).all()
        assert (buffer[start + size :] == 7).all()
        assert not (out == 7).any()
