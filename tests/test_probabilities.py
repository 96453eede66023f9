"""nll_loss, log_loss: options by the oracle, ulps, special values, layouts, threads, refusals."""

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from reference import GRAD_ULP, LOSS_ULP, assert_close

import fastce

inf, nan = np.inf, np.nan
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
wide = pytest.mark.skipif(not reference.wide, reason="longdouble is a double here")
both = pytest.mark.parametrize("name", ["nll_loss", "log_loss"])


def draw(name, shape, dtype, rng, axis=-1):
    """Rows that sum to one along the axis, or their logarithms."""
    p = np.moveaxis(rng.dirichlet(np.ones(shape[axis]), np.delete(shape, axis)), -1, axis)
    return (np.log(p) if name == "nll_loss" else p).astype(dtype)


@both
@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((30, 5), -1), ((9, 130), -1), ((2, 5, 19), 1)], ids=str
)
def test_all_options(shape, axis, reduction, soft, name, dtype, isa, rng):
    rows, n_classes = tuple(np.delete(shape, axis)), shape[axis]
    x = draw(name, shape, dtype, rng, axis)
    y = rng.integers(0, n_classes, rows)
    y.flat[3] = -100
    targets = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.7) if soft else y
    for options in (
        {},
        {"class_weight": rng.uniform(size=n_classes), "sample_weight": rng.uniform(size=rows)},
        {"where": rng.uniform(size=rows) < 0.7, "upstream": 0.3},
    ):
        options |= {"axis": axis, "reduction": reduction}
        expected = getattr(reference, name)(x, targets, **options)
        loss, grad = getattr(fastce, name + "_with_grad")(x, targets, **options)
        assert loss.dtype == grad.dtype == dtype
        assert_close(loss, expected[0], dtype)
        assert_close(grad, expected[1], dtype)
        options.pop("upstream", None)
        alone = getattr(fastce, name)(x, targets, **options)
        np.testing.assert_array_equal(alone, loss)


@wide
@dtypes
def test_log_loss_is_within_the_contract(dtype, isa, rng):
    """From subnormal probabilities to the neighbours of 1, where the loss is one rounding."""
    info = np.finfo(dtype)
    p = np.concatenate(
        [
            10.0 ** rng.uniform(np.log10(float(info.tiny)), 0, 3000),
            1 - 10.0 ** rng.uniform(-16, 0, 3000),
            float(info.smallest_subnormal) * 2.0 ** rng.integers(0, info.nmant, 100),
            rng.uniform(size=3000),
            [1.0, 1.5, 3e8, float(info.max)],
        ]
    ).astype(dtype)
    x, y = np.stack([p, p], 1), rng.integers(0, 2, p.size)
    loss, grad = reference.log_loss(x, y, reduction="none")
    actual = fastce.log_loss_with_grad(x, y, reduction="none")
    assert reference.ulp_error(actual[0], loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(actual[1], grad, dtype) <= GRAD_ULP[dtype]


@dtypes
def test_what_is_no_probability(dtype, isa):
    """Neither clipped nor hidden: 0 costs infinity, more than 1 pays, a negative one is NaN."""
    p = np.array([0, 2, -1, nan, inf, -inf], dtype)[:, None]
    loss, grad = fastce.log_loss_with_grad(p, [0] * 6, reduction="none")
    np.testing.assert_array_equal(loss, np.array([inf, -np.log(2), nan, nan, -inf, nan], dtype))
    np.testing.assert_array_equal(grad[:, 0], [-inf, -0.5, 1, nan, 0, 0])
    loss, grad = fastce.nll_loss_with_grad(p, [0] * 6, reduction="none")
    np.testing.assert_array_equal(loss, -p[:, 0])
    np.testing.assert_array_equal(grad[:, 0], [-1] * 6)


@both
def test_weight_zero_times_infinity_is_zero(name, isa):
    impossible = -inf if name == "nll_loss" else 0.0
    call = getattr(fastce, name + "_with_grad")
    x = np.array([[impossible, 0.5], [0.5, 0.5]])
    loss, grad = call(x, [0, 1], class_weight=[0, 1], reduction="none")
    assert loss[0] == 0
    np.testing.assert_array_equal(grad[0], [0, 0])
    loss, grad = call(x, [[0.0, 1.0], [0.5, 0.5]], reduction="none")
    assert np.isfinite(loss).all()
    assert np.isfinite(grad).all()


@both
@dtypes
def test_a_row_that_is_not_there_is_not_read(name, dtype, isa, rng):
    x = draw(name, (30, 4), dtype, rng)
    y = rng.integers(0, 4, 30)
    call = getattr(fastce, name + "_with_grad")
    loss, grad = call(x[10:], y[10:])
    x[:10] = nan
    ignored = np.where(np.arange(30) < 10, -100, y)
    kept = np.arange(30) >= 10
    classes = np.repeat(kept[:, None], 4, 1)
    for targets, options in (
        (ignored, {}),
        (y, {"where": kept}),
        (y, {"where": classes}),
        (y, {"sample_weight": kept}),
        (np.where(kept, y, 77), {"ignore_index": 77}),
    ):
        actual = call(x, targets, **options)
        assert actual[0] == loss
        np.testing.assert_array_equal(actual[1], np.concatenate([np.zeros((10, 4)), grad]))


@both
def test_only_the_label_is_read(name, isa):
    x = np.array([[nan, 0.5, inf], [0.5, nan, -1]], np.float32)
    loss, grad = getattr(fastce, name + "_with_grad")(x, [1, 0])
    np.testing.assert_allclose(loss, -0.5 if name == "nll_loss" else np.log(2), rtol=1e-6)
    assert np.isfinite(grad).all()


@both
def test_a_hidden_class_has_probability_zero(name, isa):
    x = draw(name, (3, 4), np.float64, np.random.default_rng(0))
    kept = np.ones((3, 4), bool)
    kept[1, 2] = False
    loss, grad = getattr(fastce, name + "_with_grad")(x, [2, 2, 2], where=kept, reduction="none")
    assert np.isfinite(loss[[0, 2]]).all()
    assert loss[1] == inf
    assert grad[1, 2] == (-1 if name == "nll_loss" else -inf)


@both
@dtypes
@pytest.mark.parametrize("n_classes", [3, 112, 113, 224, 700])
def test_every_layout_and_number_of_threads_has_the_same_bits(name, n_classes, dtype, isa, rng):
    x = draw(name, (6, 50, n_classes), dtype, rng)
    y = rng.integers(0, n_classes, (6, 50)).astype(np.int16)
    w = rng.uniform(size=(6, 50))
    call = getattr(fastce, name + "_with_grad")
    loss, grad = call(x, y, sample_weight=w, n_threads=1)
    expected = getattr(reference, name)(x, y, sample_weight=w)
    assert reference.ulp_error(loss, expected[0], dtype) <= LOSS_ULP[dtype]
    assert (np.count_nonzero(grad, axis=-1) == 1).all()
    first = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    out = np.full((6, 50, 2 * n_classes), 7, dtype)[..., ::2]
    for actual in (
        call(x, y, sample_weight=w, n_threads=3),
        call(np.asfortranarray(x), y, sample_weight=w),
        call(x[::-1, ::-1, ::-1], n_classes - 1 - y[::-1, ::-1], sample_weight=w[::-1, ::-1]),
        call(first, y, sample_weight=w, axis=1),
        call(x, y, sample_weight=w, out=out),
        call(x.copy(), y, sample_weight=w, out=np.empty(x.shape)),
    ):
        assert actual[0] == loss
    np.testing.assert_array_equal(out, grad)
    np.testing.assert_array_equal(
        np.moveaxis(call(first, y, sample_weight=w, axis=1)[1], 1, -1), grad
    )
    assert call(x, y, sample_weight=w, out=x)[0] == loss
    np.testing.assert_array_equal(x, grad)


@given(
    st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=20),
    st.integers(0, 3**20),
)
def test_with_log_softmax_it_is_cross_entropy(rows, digits):
    x = np.array(rows)
    y = np.array([digits // 3**i % 3 for i in range(len(x))])
    log_probs, p = fastce.log_softmax(x), fastce.softmax(x)
    loss = fastce.cross_entropy(x, y, reduction="none")
    np.testing.assert_allclose(
        fastce.nll_loss(log_probs, y, reduction="none"), loss, rtol=1e-14, atol=1e-300
    )
    np.testing.assert_allclose(
        fastce.log_loss(p, y, reduction="none"), loss, atol=4e-16, rtol=1e-14
    )


def test_halves(isa, rng):
    x = draw("log_loss", (50, 8), np.float16, rng) + np.float16(0.01)
    y = rng.integers(0, 8, 50)
    loss, grad = fastce.log_loss_with_grad(x, y, reduction="none")
    expected = reference.log_loss(x, y, reduction="none")
    assert loss.dtype == np.float32
    assert grad.dtype == np.float16
    assert reference.ulp_error(loss, expected[0], np.float32) <= LOSS_ULP[np.float32]
    assert reference.ulp_error(grad, expected[1], np.float16) <= 1


# ---------- refusals


@pytest.mark.parametrize(("name", "x"), [("nll_loss", "log_probs"), ("log_loss", "probabilities")])
def test_a_bad_call_is_refused_and_nothing_written(name, x):
    good, y = np.full((4, 5), 0.2), [0, 1, 2, 3]
    out = np.full((4, 5), 7.0)
    for args, options, message in (
        ((good.astype(complex), y), {}, x),
        (("a", y), {}, x),
        ((0.5, 0), {}, f"{x} must have a class axis"),
        ((np.ones((4, 0)), y), {}, f"{x} must have at least one class"),
        ((good, [0, 1, 5, 3]), {}, r"targets\[2\] is 5, outside \[0, 5\)"),
        ((good, y[:3]), {}, rf"targets.*\(4,\).*{x} \(4, 5\)"),
        ((good, y), {"axis": 2}, f"axis is 2, out of range for {x}"),
        ((good, y), {"class_weight": [1, 2]}, r"class_weight.*\(5,\)"),
        ((good, y), {"sample_weight": [1, 2, 3, -1]}, r"sample_weight\[3\] is -1"),
        ((good, y), {"where": np.ones(5, bool)}, "where"),
        ((good, good), {"ignore_index": 2}, "ignore_index"),
        ((good, y), {"reduction": "avg"}, "reduction"),
        ((good, y), {"normalizer": -1}, "normalizer"),
        ((good, y), {"on_empty": ""}, "on_empty"),
        ((good, y), {"sample_weight": [0] * 4, "on_empty": "raise"}, "on_empty"),
        ((good, y), {"n_threads": 0}, "n_threads"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(fastce, name)(*args, **options)
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(fastce, name + "_with_grad")(*args, out=out, **options)
        assert (out == 7).all()
    for wrong in (out[:3], out.astype(int), good[::-1]):
        with pytest.raises((ValueError, TypeError), match="out"):
            getattr(fastce, name + "_with_grad")(good, y, out=wrong)
    with pytest.raises(TypeError, match="label_smoothing"):
        getattr(fastce, name)(good, y, label_smoothing=0.1)


@wide
@both
def test_sums_over_many_classes_lose_nothing(name, isa, rng):
    x = draw(name, (2, 30000), np.float64, rng)
    q = rng.random((2, 30000))
    losses = getattr(fastce, name)(x, q, reduction="none")
    logs = x.astype(np.longdouble) if name == "nll_loss" else np.log(x.astype(np.longdouble))
    assert reference.ulp_error(losses, -(q * logs).sum(1), np.float64) <= LOSS_ULP[np.float64]


def test_the_slope_at_zero_has_one_sign():
    _, grad = fastce.log_loss_with_grad(np.array([[0.0, 1.0], [-0.0, 1.0]]), [0, 0])
    np.testing.assert_array_equal(grad, [[-inf, 0], [-inf, 0]])
