"""uncertainty_weighted: the sum of exp(-s) loss + s / 2, and its gradients."""

import numpy as np
import pytest

import fastce


def test_value_and_gradients_by_hand():
    loss, grads = fastce.uncertainty_weighted_with_grad([2.0, 3.0], [0.0, np.log(4)])
    np.testing.assert_allclose(loss, 2 + 3 / 4 + np.log(4) / 2)
    np.testing.assert_allclose(grads.losses, [1, 1 / 4])
    np.testing.assert_allclose(grads.log_variances, [1 / 2 - 2, 1 / 2 - 3 / 4])
    assert fastce.uncertainty_weighted([2.0, 3.0], [0.0, np.log(4)]) == loss


def test_the_gradients_are_the_derivatives(rng):
    losses, s, h = rng.uniform(0, 5, 4), rng.normal(size=4), 1e-6
    _, grads = fastce.uncertainty_weighted_with_grad(losses, s)
    for i in range(4):
        step = h * (np.arange(4) == i)
        for grad, up, down in (
            (grads.losses, (losses + step, s), (losses - step, s)),
            (grads.log_variances, (losses, s + step), (losses, s - step)),
        ):
            change = fastce.uncertainty_weighted(*up) - fastce.uncertainty_weighted(*down)
            np.testing.assert_allclose(grad[i], change / (2 * h), rtol=1e-7, atol=1e-8)


def test_the_best_variance_is_twice_the_loss():
    """There the gradient is zero, and the loss may be negative."""
    loss, grads = fastce.uncertainty_weighted_with_grad([0.01], [np.log(0.02)])
    np.testing.assert_allclose(grads.log_variances, 0, atol=1e-15)
    assert loss < 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(dtype):
    loss, grads = fastce.uncertainty_weighted_with_grad(np.ones(3, dtype), np.zeros(3, dtype))
    assert loss.dtype == grads.losses.dtype == grads.log_variances.dtype == dtype


@pytest.mark.parametrize(
    ("losses", "s", "message"),
    [
        ([1.0], [0.0, 0.0], r"log_variances.*\(1,\).*\(2,\)"),
        (["a"], [0.0], "losses"),
        ([1.0], [1j], "log_variances"),
        ([[1.0], [1.0, 2.0]], [0.0], "losses"),
    ],
)
def test_bad_arguments(losses, s, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fastce.uncertainty_weighted(losses, s)
