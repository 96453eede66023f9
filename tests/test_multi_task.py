"""Several losses weighted by learned uncertainty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastce

numbers = st.lists(st.tuples(st.floats(0, 100), st.floats(-5, 5)), min_size=1, max_size=6)


def test_by_hand():
    loss, grads = fastce.uncertainty_weighted_with_grad([2.0, 3.0], [0.0, np.log(4)])
    np.testing.assert_allclose(loss, 2 + 3 / 4 + np.log(4) / 2)
    np.testing.assert_allclose(grads.losses, [1, 1 / 4])
    np.testing.assert_allclose(grads.log_variances, [1 / 2 - 2, 1 / 2 - 3 / 4])
    assert fastce.uncertainty_weighted([0.01], [np.log(0.02)]) < 0


@given(numbers)
def test_value_and_gradients(tasks):
    """Against the formula in longdouble, and the gradients against differences of the value."""
    losses, s = np.array(tasks).T
    value, grads = fastce.uncertainty_weighted_with_grad(losses, s)
    wide_losses, wide_s = losses.astype(np.longdouble), s.astype(np.longdouble)
    terms = np.exp(-wide_s) * wide_losses
    scale = float(terms.sum() + abs(wide_s).sum())
    # of subnormals, half a unit for each of a task's two parts, and one for the sum expected
    roundings = 1e-15 * scale + (len(tasks) + 1) * np.finfo(float).smallest_subnormal
    np.testing.assert_allclose(value, float((terms + wide_s / 2).sum()), atol=roundings)
    assert fastce.uncertainty_weighted(losses, s) == value
    for i in range(len(s)):
        step = np.eye(len(s))[i] * 1e-5
        slope = [
            fastce.uncertainty_weighted(losses + a, s + b)
            - fastce.uncertainty_weighted(losses - a, s - b)
            for a, b in ((step, 0), (0, step))
        ]
        tolerance = 1e-5 * (1 + scale)
        assert grads.losses[i] == pytest.approx(slope[0] / 2e-5, abs=tolerance)
        assert grads.log_variances[i] == pytest.approx(slope[1] / 2e-5, abs=tolerance)


def test_at_its_minimum_the_variance_is_twice_the_loss():
    losses = np.array([0.1, 1.0, 30.0])
    _, grads = fastce.uncertainty_weighted_with_grad(losses, np.log(2 * losses))
    np.testing.assert_allclose(grads.log_variances, 0, atol=1e-15)


@pytest.mark.parametrize(
    ("losses", "s", "dtype"),
    [
        (np.float32, np.float32, np.float32),
        (np.float32, np.float64, np.float64),
        (np.int32, np.float32, np.float64),
        (np.float16, np.float16, np.float64),
    ],
)
def test_dtypes(losses, s, dtype):
    value, grads = fastce.uncertainty_weighted_with_grad(
        np.ones((2, 3), losses), np.zeros((2, 3), s)
    )
    assert value == 6
    assert value.dtype == grads.losses.dtype == grads.log_variances.dtype == dtype
    assert grads.losses.shape == grads.log_variances.shape == (2, 3)


def test_it_overflows_to_infinity_without_a_warning():
    value, grads = fastce.uncertainty_weighted_with_grad([1.0, 0.0], [-1000.0, -1000.0])
    assert value == np.inf
    np.testing.assert_array_equal(grads.losses, [np.inf, np.inf])
    np.testing.assert_array_equal(grads.log_variances, [-np.inf, 0.5])
    assert np.isnan(fastce.uncertainty_weighted([np.nan], [0.0]))
    value, _ = fastce.uncertainty_weighted_with_grad(np.float32([3e38]), np.float32([-50]))
    assert value == np.inf


@pytest.mark.parametrize(
    ("losses", "s", "message"),
    [
        ([1.0, 2.0], [0.0], r"log_variances.*\(2,\).*\(1,\)"),
        ([1.0], 0.0, r"log_variances.*\(1,\).*\(\)"),
        (["1"], [0.0], "losses"),
        ([1j], [0.0], "losses"),
        ([1.0], [None], "log_variances"),
        ([[1.0], [1.0, 2.0]], [0.0], "losses"),
        (np.ma.masked_array([1.0]), [0.0], "losses.*masked array"),
    ],
)
def test_a_bad_call_is_refused(losses, s, message):
    for call in (fastce.uncertainty_weighted, fastce.uncertainty_weighted_with_grad):
        with pytest.raises((ValueError, TypeError), match=message) as info:
            call(losses, s)
        assert "\n" not in str(info.value)
