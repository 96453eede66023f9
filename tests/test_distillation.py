"""The divergence of a student from its teacher, beside the formula in longdouble."""

import decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastce

WIDE = np.longdouble


def exact(student, teacher, temperature):
    """Losses and gradients of rows, by terms that are not negative; classes are the last axis."""

    def log_softmax(z):
        z = z.astype(WIDE) / WIDE(temperature)
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))

    log_p, log_q = log_softmax(student), log_softmax(teacher)
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore"):
        d = np.where(q == 0, 0, log_q - log_p)
        terms = np.where(q == 0, p, q * (d + np.expm1(-d)))
    return temperature**2 * terms.sum(axis=-1), temperature * (p - q)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("n_rows", "n_classes"), [(40, 7), (3, 70000), (300, 500)])
def test_value_and_gradient(isa, rng, temperature, n_rows, n_classes):
    student, teacher = 3 * rng.normal(size=(2, n_rows, n_classes))
    losses, grad = exact(student, teacher, temperature)
    options = {"temperature": temperature, "reduction": "none"}
    found, slopes = fastce.distillation_loss_with_grad(student, teacher, **options)
    np.testing.assert_allclose(found, losses.astype(float), rtol=1e-13)
    np.testing.assert_allclose(slopes, grad.astype(float), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(fastce.distillation_loss(student, teacher, **options), found)
    mean, slopes = fastce.distillation_loss_with_grad(student, teacher, temperature=temperature)
    assert mean == pytest.approx(float(losses.mean()), rel=1e-13)
    np.testing.assert_allclose(slopes, grad.astype(float) / n_rows, rtol=1e-12, atol=1e-17)


def to_any_digit(student, teacher, temperature):
    """The loss and the gradient of one row, with 120 digits to cancel."""
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 120, decimal.MIN_EMIN, decimal.MAX_EMAX
        T = decimal.Decimal(temperature)

        def softmax(z):
            powers = [
                ((decimal.Decimal(float(x)) - decimal.Decimal(float(max(z)))) / T).exp() for x in z
            ]
            return [power / sum(powers) for power in powers]

        p, q = softmax(student), softmax(teacher)
        loss = T * T * sum(b * (b / a).ln() for a, b in zip(p, q, strict=True))
        return float(loss), [float(T * (a - b)) for a, b in zip(p, q, strict=True)]


@given(
    st.sampled_from(fastce._kernel.isas()),
    st.floats(-15, 0.5), st.floats(-1, 30), st.floats(0, 1e6), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_small_losses_keep_their_digits(isa, distance, power, offset, seed):
    """A student near its teacher, or a high temperature, where the sum of q log(q / p) is noise."""
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=9)
    student = teacher + 10.0**distance * rng.normal(size=9) + offset
    used = fastce._kernel.use_isa(isa)
    found, grad = fastce.distillation_loss_with_grad(student, teacher, temperature=10.0**power)
    fastce._kernel.use_isa(used)
    loss, slopes = to_any_digit(student, teacher, 10.0**power)
    # Beyond that near rows end, where logarithms of 2 and more differ by 1 and more.
    assert found == pytest.approx(loss, rel=2e-14)
    np.testing.assert_allclose(grad, slopes, rtol=2e-14, atol=2e-14 * max(map(abs, slopes)))


@given(st.integers(2, 9), st.floats(-8, 3), st.floats(2.5, 9), st.integers(0, 2**32 - 1))
def test_classes_far_apart_cost_the_others_no_digits(n_classes, distance, gap, seed):
    """Those that the kernel leaves: 500 apart, or of a probability that is 0 as a double."""
    rng = np.random.default_rng(seed)
    student = rng.normal(size=n_classes) * 10.0 ** rng.uniform(-3, 2)
    teacher = student + 10.0**distance * rng.normal(size=n_classes)
    for logits in (student, teacher):
        logits[rng.integers(0, n_classes, rng.integers(0, 2))] -= 10.0**gap
    found, grad = fastce.distillation_loss_with_grad(student, teacher)
    loss, slopes = to_any_digit(student, teacher, 1)
    # e^-745 is off by 745 roundings; 120 digits that cancel are noise below 1e-90
    if loss > 1e-90:
        assert found == pytest.approx(loss, rel=2e-13)
        np.testing.assert_allclose(grad, slopes, rtol=2e-13, atol=2e-13 * max(map(abs, slopes)))


@pytest.mark.parametrize("n_classes", [1000, 32000])
@pytest.mark.parametrize("hidden", [-np.inf, -600.0])
def test_a_teacher_that_keeps_one_class_of_many(n_classes, hidden):
    """What they both see is 1 / n_classes of p."""
    student, teacher = np.zeros((1, n_classes)), np.full((1, n_classes), hidden)
    teacher[0, 0] = 0
    loss, grad = fastce.distillation_loss_with_grad(student, teacher)
    assert loss == pytest.approx(np.log(n_classes), rel=1e-15)
    assert grad[0, 0] == pytest.approx(1 / n_classes - 1, rel=1e-15)
    np.testing.assert_allclose(grad[0, 1:], 1 / n_classes, rtol=1e-12)


@given(st.sampled_from(fastce._kernel.isas()), st.floats(0, 2.3), st.integers(0, 2**32 - 1))
def test_a_wide_range_costs_what_its_size_tells(isa, power, seed):
    """Logits over the temperature from -700 to 700, each rounded to 1e-16 of itself."""
    rng = np.random.default_rng(seed)
    student, teacher = 10.0**power * rng.uniform(-1, 1, (2, 5))
    used = fastce._kernel.use_isa(isa)
    found, grad = fastce.distillation_loss_with_grad(student, teacher, temperature=0.3)
    fastce._kernel.use_isa(used)
    loss, slopes = to_any_digit(student, teacher, 0.3)
    bound = max(1e-14, 4e-16 * np.ptp([student, teacher]) / 0.3)
    if loss > 1e-90:  # as above
        assert found == pytest.approx(loss, rel=bound)
        np.testing.assert_allclose(grad, slopes, rtol=0, atol=bound * max(map(abs, slopes)))


def test_float32_is_computed_in_double(rng):
    teacher = rng.normal(size=(50, 20)).astype(np.float32)
    student = teacher + np.float32(1e-4) * rng.normal(size=(50, 20)).astype(np.float32)
    found, grad = fastce.distillation_loss_with_grad(student, teacher, reduction="none")
    losses, slopes = exact(student, teacher, 1.0)
    assert found.dtype == grad.dtype == np.float32
    np.testing.assert_allclose(found, losses.astype(float), rtol=2e-7)
    np.testing.assert_allclose(grad, slopes.astype(float), rtol=2e-7, atol=1e-12)
    half = fastce.distillation_loss_with_grad(student.astype(np.float16), teacher)
    assert (half[0].dtype, half[1].dtype) == (np.float32, np.float16)


@pytest.mark.parametrize("dtypes", ["ff", "fd", "df", "dd", "ef", "ed"])
@pytest.mark.parametrize("n_classes", [*range(1, 20), 33, 1000])
def test_any_number_of_classes_of_any_dtypes(isa, rng, n_classes, dtypes):
    """Rows do not depend on how many there are, on threads, on dtypes, or on their neighbours."""
    student, teacher = (
        rng.normal(size=(333, n_classes)).astype(np.float16).astype(dtype) for dtype in dtypes
    )
    losses, slopes = exact(student, teacher, 2.0)
    options = {"temperature": 2.0, "reduction": "none"}
    found, grad = fastce.distillation_loss_with_grad(student, teacher, n_threads=1, **options)
    assert grad.dtype == student.dtype
    eps = np.finfo(found.dtype).eps
    np.testing.assert_allclose(found, losses.astype(float), rtol=max(eps, 1e-14), atol=1e-30)
    np.testing.assert_allclose(
        grad.astype(float), slopes.astype(float), atol=1e-7 if student.dtype == "e" else 1e-15,
        rtol=max(float(np.finfo(grad.dtype).eps), 1e-13),
    )  # fmt: skip
    for n_threads in (2, 5):
        again = fastce.distillation_loss_with_grad(student, teacher, n_threads=n_threads, **options)
        np.testing.assert_array_equal(again[0], found)
        np.testing.assert_array_equal(again[1], grad)
    some = fastce.distillation_loss_with_grad(student[100:103], teacher[100:103], **options)
    np.testing.assert_array_equal(some[0], found[100:103])
    np.testing.assert_array_equal(some[1], grad[100:103])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rare_rows_among_others(isa, rng, dtype):
    """Those that are far apart are computed elsewhere, and land where they belong."""
    student, teacher = (10 * rng.normal(size=(50, 9))).astype(dtype), np.zeros((50, 9), dtype)
    student[::7, 3] = -600
    teacher[3::7, 4] = 700
    student[5::7, 2], teacher[5::7, 2] = -np.inf, -np.inf
    losses, slopes = exact(student, teacher, 0.5)
    found, grad = fastce.distillation_loss_with_grad(
        student, teacher, temperature=0.5, reduction="none"
    )
    both = np.arange(50) % 7 == 5  # the oracle has no -inf in both
    hidden = np.delete(np.arange(9), 2)
    losses[both], rest = exact(student[both][:, hidden], teacher[both][:, hidden], 0.5)
    slopes[both] = 0
    slopes[np.ix_(both, hidden)] = rest
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found, losses.astype(float), rtol=max(eps, 1e-13))
    np.testing.assert_allclose(grad, slopes.astype(float), rtol=max(eps, 1e-12), atol=1e-15)


def test_hidden_classes(isa):
    """A class that both hide is not there; one that the teacher hides costs the student its p."""
    inf = np.inf
    student = np.array([[1.0, 2, -inf], [1, 2, 3], [1, 2, -inf], [np.nan, 0, 0]])
    teacher = np.array([[2.0, 1, -inf], [2, 1, -inf], [2, 1, 3], [1, 2, 3]])
    losses, grad = fastce.distillation_loss_with_grad(student, teacher, reduction="none")
    two = fastce.distillation_loss(student[0, :2], teacher[0, :2])
    assert losses[0] == pytest.approx(two, rel=1e-14)
    p = np.exp(fastce.log_softmax(student[1]))
    q = fastce.softmax(teacher[1])[:2]
    assert losses[1] == pytest.approx((q * np.log(q / p[:2])).sum(), rel=1e-14)
    assert losses[2] == inf
    assert np.isnan(losses[3])
    assert np.isnan(grad[3]).all()
    assert np.isfinite(grad[:3]).all()
    assert grad[0, 2] == 0


def test_axis_and_strides(rng):
    student, teacher = rng.normal(size=(2, 4, 5, 1000))
    expected, grad = fastce.distillation_loss_with_grad(student, teacher, reduction="none")
    found, moved = fastce.distillation_loss_with_grad(
        np.moveaxis(student, 2, 0)[:, ::-1], np.moveaxis(teacher, 2, 0)[:, ::-1], axis=0,
        reduction="none",
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected[::-1])
    np.testing.assert_array_equal(np.moveaxis(moved, 0, 2), grad[::-1])
    one = fastce.distillation_loss(student[0, 0], teacher[0, 0])
    assert one == expected[0, 0]


def test_weights(rng):
    student, teacher = rng.normal(size=(2, 6, 4))
    weights = np.array([0, 1, 2, 0, 1, 4.0])
    losses, slopes = fastce.distillation_loss_with_grad(student, teacher, reduction="none")
    student[0] = np.nan  # not there
    found, grad = fastce.distillation_loss_with_grad(
        student, teacher, sample_weight=weights, upstream=3.0
    )
    assert found == pytest.approx((losses * weights).sum() / 8, rel=1e-14)
    np.testing.assert_allclose(grad, 3 * slopes * weights[:, None] / 8, rtol=1e-13)
    each, grad = fastce.distillation_loss_with_grad(
        student, teacher, sample_weight=weights, upstream=weights, reduction="none"
    )
    np.testing.assert_allclose(each, losses * weights, rtol=1e-14)
    np.testing.assert_allclose(grad, slopes * weights[:, None] ** 2, rtol=1e-13)
    total = fastce.distillation_loss(student[1:], teacher[1:], reduction="sum")
    assert total == pytest.approx(losses[1:].sum(), rel=1e-14)
    assert np.isnan(fastce.distillation_loss(student[:0], teacher[:0]))
    assert np.isnan(fastce.distillation_loss(student, teacher, sample_weight=np.zeros(6)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": "x"}, TypeError, "student must be float16"),
        (
            {"teacher": np.ones((2, 4))},
            ValueError,
            r"teacher must have the shape of student \(2, 3\)",
        ),
        ({"teacher": np.ones((2, 3), complex)}, TypeError, "teacher must be float16"),
        ({"temperature": 0.0}, ValueError, "temperature must be"),
        ({"temperature": np.nan}, ValueError, "temperature must be"),
        ({"axis": 2}, ValueError, "axis is 2, out of range for student"),
        ({"sample_weight": [1.0]}, ValueError, r"sample_weight must have shape \(2,\)"),
        ({"sample_weight": [1.0, -1.0]}, ValueError, r"sample_weight\[1\] is -1.0"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be"),
        ({"upstream": [1.0, 1.0]}, ValueError, "upstream must be a number unless"),
        ({"n_threads": 0}, ValueError, "n_threads must be"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    arguments = {"student": np.ones((2, 3)), "teacher": np.ones((2, 3))} | change
    with pytest.raises(error, match=message):
        fastce.distillation_loss_with_grad(**arguments)
