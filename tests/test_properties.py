"""What holds for every input: hypothesis draws the logits, the labels and the weights."""

import numpy as np
import reference
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastce

EPS = float(np.finfo(np.float32).eps)


@st.composite
def batches(draw, lowest_rows=1, elements=None):
    """float32 logits of every kind that a finite loss allows, and labels in range."""
    n_rows = draw(st.integers(lowest_rows, 40))
    n_classes = draw(st.integers(1, 130))
    if elements is None:
        bound = draw(st.sampled_from([0.5, 10.0, 200.0, 2.0**20]))
        elements = st.floats(-bound, bound, width=32)
    x = draw(hnp.arrays(np.float32, (n_rows, n_classes), elements=elements))
    y = draw(hnp.arrays(np.int64, n_rows, elements=st.integers(0, n_classes - 1)))
    return x, y


@st.composite
def with_some_rows_gone(draw):
    x, y = draw(batches())
    return x, y, draw(hnp.arrays(bool, len(y)))


@given(with_some_rows_gone())
def test_ignored_rows_equal_deleted_rows(case):
    x, y, gone = case
    left_loss, left_grad = fastce.cross_entropy_with_grad(x[~gone], y[~gone], reduction="none")
    for options in ({"targets": np.where(gone, -100, y)}, {"targets": y, "sample_weight": ~gone}):
        loss, grad = fastce.cross_entropy_with_grad(x, **options, reduction="none")
        np.testing.assert_array_equal(loss[~gone], left_loss)
        np.testing.assert_array_equal(grad[~gone], left_grad)
        assert not loss[gone].any()
        assert not grad[gone].any()
        mean = fastce.cross_entropy(x, **options)
        np.testing.assert_allclose(mean, fastce.cross_entropy(x[~gone], y[~gone]), rtol=2 * EPS)


@given(batches(elements=st.integers(-8 * 1024, 8 * 1024).map(lambda i: i / 1024)),
       st.integers(-8 * 1024, 8 * 1024))  # fmt: skip
def test_adding_a_constant_changes_nothing(case, constant):
    """Of what is promised: where the sum is exact (multiples of 2**-10 below 2**14 are, in float32)
    the oracle's result is the same to the bit, and ours stays within the contract of it."""
    x, y = case
    loss, grad, _ = reference.cross_entropy(x, y, reduction="none")
    moved = x + np.float32(constant)
    moved_loss, moved_grad = fastce.cross_entropy_with_grad(moved, y, reduction="none")
    assert reference.ulp_error(moved_loss, loss, np.float32) <= 2
    assert reference.ulp_error(moved_grad, grad, np.float32) <= 4


@given(batches())
def test_rows_of_the_gradient_sum_to_zero(case):
    """As closely as its elements are right: 4 ulp of each."""
    _, grad = fastce.cross_entropy_with_grad(*case, reduction="none")
    grad = grad.astype(np.float64)
    tiny = grad.shape[1] * float(np.finfo(np.float32).smallest_subnormal)
    assert (abs(grad.sum(1)) <= 4 * EPS * abs(grad).sum(1) + 4 * tiny).all()


@given(batches())
def test_signs_and_bounds(case):
    """The loss is not negative, only the label's gradient is, and none is beyond 1 (by 4 ulp)."""
    x, y = case
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    assert (loss >= 0).all()
    assert (abs(grad) <= 1 + 4 * EPS).all()
    label = np.arange(x.shape[1]) == y[:, None]
    assert (grad[label] <= 0).all()
    assert (grad[~label] >= 0).all()


@given(batches(), st.randoms(use_true_random=False))
def test_permuting_the_classes_permutes_the_gradient(case, random):
    """Up to the order of the sum: both are within the contract."""
    x, y = case
    order = np.array(random.sample(range(x.shape[1]), x.shape[1]))
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    other_loss, other_grad = fastce.cross_entropy_with_grad(
        x[:, order], np.argsort(order)[y], reduction="none"
    )
    assert reference.ulp_error(other_loss, loss, np.float32) <= 2 * 2
    assert reference.ulp_error(other_grad, grad[:, order], np.float32) <= 2 * 4


@given(batches(), st.data())
def test_reductions_are_sums_and_quotients_of_the_rows(case, data):
    x, y = case
    positive = st.floats(0.125, 8, width=32)
    cw = data.draw(hnp.arrays(np.float32, x.shape[1], elements=positive))
    sw = data.draw(hnp.arrays(np.float32, len(y), elements=positive))
    options = {"class_weight": cw, "sample_weight": sw}
    losses, grads = fastce.cross_entropy_with_grad(x, y, reduction="none", **options)
    total, total_grad = fastce.cross_entropy_with_grad(x, y, reduction="sum", **options)
    mean, mean_grad = fastce.cross_entropy_with_grad(x, y, reduction="mean", **options)
    divisor = (sw.astype(np.float64) * cw[y]).sum()
    np.testing.assert_allclose(total, losses.astype(np.float64).sum(), rtol=2 * EPS)
    unit = 2.0**-149 * (1 + 1 / divisor)  # where the total or the mean is subnormal
    np.testing.assert_allclose(mean, total / divisor, rtol=2 * EPS, atol=unit)
    np.testing.assert_array_equal(total_grad, grads)
    np.testing.assert_allclose(mean_grad, grads / divisor, rtol=8 * EPS, atol=8 * unit)


@given(batches(), st.data())
def test_class_weights_are_sample_weights_by_label(case, data):
    x, y = case
    weights = st.floats(0.125, 8, width=32)
    cw = data.draw(hnp.arrays(np.float32, x.shape[1], elements=weights))
    by_class = fastce.cross_entropy_with_grad(x, y, class_weight=cw, reduction="sum")
    by_row = fastce.cross_entropy_with_grad(x, y, sample_weight=cw[y], reduction="sum")
    for ours, expected in zip(by_class, by_row, strict=True):  # doubles, multiplied in other orders
        assert reference.ulp_error(ours, expected, np.float32) <= 1


@given(batches(), st.integers(-20, 20))
def test_the_mean_forgets_the_scale_of_the_weights(case, exponent):
    """To the bit, for a power of two."""
    x, y = case
    w = np.linspace(1, 2, len(y))
    loss, grad = fastce.cross_entropy_with_grad(x, y, sample_weight=w)
    scaled_loss, scaled_grad = fastce.cross_entropy_with_grad(x, y, sample_weight=w * 2.0**exponent)
    assert scaled_loss == loss
    np.testing.assert_array_equal(scaled_grad, grad)


@given(batches())
def test_two_classes_are_the_logistic_loss(case):
    """loss = log(1 + exp(-d)) and the gradient is sigmoid(-d), d the label's lead."""
    x, _ = case
    assume(x.shape[1] >= 2)
    x, y = x[:, :2], np.zeros(len(x), int)
    d = reference.longdouble(x[:, 0]) - reference.longdouble(x[:, 1])
    small = np.exp(-abs(d))
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    expected = np.maximum(-d, 0) + np.log1p(small)
    assert reference.ulp_error(loss, expected, np.float32) <= 2
    sigmoid = np.where(d > 0, small, 1) / (1 + small)
    assert reference.ulp_error(grad, np.stack([-sigmoid, sigmoid], 1), np.float32) <= 4


ANY_FLOAT = st.floats(width=32, allow_subnormal=True)  # infinities and NaN too


@given(batches(elements=ANY_FLOAT))
def test_any_bits_are_as_the_oracle_has_them(case):
    """NaN, infinities, subnormals and the largest numbers, in any mixture."""
    x, y = case
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    expected_loss, expected_grad, _ = reference.cross_entropy(x, y, reduction="none")
    assert reference.ulp_error(loss, expected_loss, np.float32) <= 2
    assert reference.ulp_error(grad, expected_grad, np.float32) <= 4


@given(batches(), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))
def test_any_stride_equals_the_contiguous_result(case, row_step, class_step):
    x, y = case
    loose = np.zeros((x.shape[0] * row_step, x.shape[1] * class_step), np.float32)
    loose[::row_step, ::class_step] = x
    loss, grad = fastce.cross_entropy_with_grad(x, y)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(loose[::row_step, ::class_step], y)
    assert actual_loss == loss
    np.testing.assert_array_equal(actual_grad, grad)
