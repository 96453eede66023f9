"""Binary losses: options by the oracle, ulps, special values, layouts, masks, threads, refusals."""

import re
from itertools import product

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
both = pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_focal_loss"])
with_grad = fastce.binary_cross_entropy_with_grad


def hard_logits(rng, dtype):
    """Every magnitude up to 1e4, results down to the smallest subnormal and beyond, and ties."""
    parts = [
        10.0 ** rng.uniform(-8, 4, 3000) * rng.choice([-1, 1], 3000),
        rng.normal(size=3000) * 5,
        rng.uniform(-110, 110, 2000),  # float32's last subnormal is at 104
        rng.uniform(-760, 760, 2000),  # float64's at 745; 600 and 700 are switches in the kernel
        [0.0, -0.0, 1e30, -1e30, np.finfo(dtype).tiny, np.finfo(dtype).max],
    ]
    return np.concatenate(parts).astype(dtype)


# ---------- options


def check(name, x, targets, dtype, options):
    """Against the oracle; and the loss alone is that with the gradient."""
    expected = getattr(reference, name)(x, targets, **options)
    actual = getattr(fastce, name + "_with_grad")(x, targets, **options)
    for a, e in zip(actual, expected[:2], strict=True):
        assert a.dtype == dtype
        assert_close(a, e, dtype)
    options = {k: v for k, v in options.items() if k != "upstream"}
    np.testing.assert_array_equal(getattr(fastce, name)(x, targets, **options), actual[0])


@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_binary_cross_entropy(reduction, dtype, isa, rng):
    x = (rng.normal(size=(33, 4)) * np.linspace(0.1, 30, 33)[:, None]).astype(dtype)
    hard, soft = rng.integers(0, 2, x.shape), rng.uniform(size=x.shape)
    for targets, options in product(
        (hard, hard.astype(bool), hard.astype(dtype), soft),
        (
            {},
            {"label_smoothing": 0.2},
            {"label_smoothing": 1.0, "upstream": -0.5},
            {"pos_weight": rng.uniform(size=4)},
            {"pos_weight": 3.0, "label_smoothing": 0.2},
            {"sample_weight": rng.uniform(size=(33, 1)), "where": rng.uniform(size=x.shape) < 0.7},
            {"sample_weight": rng.uniform(size=x.shape), "pos_weight": rng.uniform(size=4)},
        ),
    ):
        check("binary_cross_entropy", x, targets, dtype, {"reduction": reduction, **options})


@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_binary_focal_loss(reduction, dtype, isa, rng):
    x = (rng.normal(size=(33, 4)) * np.linspace(0.1, 30, 33)[:, None]).astype(dtype)
    y = rng.integers(0, 2, x.shape)
    for options in (
        {},
        {"gamma": 0.5, "alpha": 0.25},
        {"gamma": 0.0, "alpha": 1.0},
        {"gamma": 1.0, "alpha": 0.0, "upstream": 3.0},
        {"sample_weight": rng.uniform(size=(33, 1)), "where": rng.uniform(size=x.shape) < 0.7},
    ):
        check("binary_focal_loss", x, y, dtype, {"reduction": reduction, **options})


# ---------- numerics


@wide
@dtypes
def test_loss_and_gradient_are_within_the_contract(dtype, isa, rng):
    x = hard_logits(rng, dtype)
    y = rng.integers(0, 2, x.size)
    loss, grad, _ = reference.binary_cross_entropy(x, y, reduction="none")
    actual_loss, actual_grad = with_grad(x, y, reduction="none")
    assert reference.ulp_error(actual_loss, loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(actual_grad, grad, dtype) <= GRAD_ULP[dtype]


@wide
@dtypes
def test_weights_keep_results_that_are_tiny_before_them(dtype, isa):
    """A weight of 1e30 or 1e100 brings exp(-700) back: it was never rounded to a subnormal."""
    weight = 1e30 if dtype == np.float32 else 1e100
    x = np.array([80, 100, -100, 600, 650, 700, -740], dtype)
    options = {"sample_weight": weight, "reduction": "none"}
    expected = reference.binary_cross_entropy(x, x > 0, **options)
    actual = with_grad(x, x > 0, **options)
    assert reference.ulp_error(actual[0], expected[0], dtype) <= 2 * LOSS_ULP[dtype]
    assert reference.ulp_error(actual[1], expected[1], dtype) <= 2 * GRAD_ULP[dtype]


@dtypes
@wide
@pytest.mark.parametrize("factor", [1e-300, 1e-290, 1e-40, 1e20, 1e200])
def test_factors_that_cancel_leave_a_gradient_its_bits(factor, dtype, isa):
    """A small weight in a mean, or before a large upstream, is no part of what underflows."""
    x = np.array([60, 20, 1, -5], dtype)
    w, each = np.full(4, factor), {"sample_weight": np.full(4, factor)}
    for options in (each, {**each, "upstream": 1 / factor, "reduction": "sum"}):
        _, expected = reference.binary_cross_entropy(x, np.ones(4), **options)[:2]
        _, grad = with_grad(x, [1, 1, 1, 1], **options)
        assert reference.ulp_error(grad, expected, dtype) <= GRAD_ULP[dtype]
    _, plain = fastce.binary_focal_loss_with_grad(x, [1, 1, 1, 1])
    _, grad = fastce.binary_focal_loss_with_grad(x, [1, 1, 1, 1], sample_weight=w)
    np.testing.assert_allclose(grad, plain, rtol=8 * np.finfo(dtype).eps)


@wide
@dtypes
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 5.0])
def test_focal_loss_of_sure_and_of_hopeless_elements(gamma, dtype, isa, rng):
    """Relative to each element, in normal numbers: (1 - p)**gamma is an exponential of gamma times
    a logarithm of up to 745, whose last bit counts as much as that."""
    x = hard_logits(rng, dtype)
    y = rng.integers(0, 2, x.size)
    expected = reference.binary_focal_loss(x, y, gamma=gamma, reduction="none")
    actual = fastce.binary_focal_loss_with_grad(x, y, gamma=gamma, reduction="none")
    info = np.finfo(dtype)
    bound = 4 * info.eps + 745 * max(gamma, 1) * 2.0**-52
    for a, e in zip(actual, expected, strict=True):
        normal = (abs(e) > info.tiny * 2.0**60) & (abs(e) <= info.max)
        assert (abs(a[normal] / e[normal] - 1) <= bound).all()


def test_halves(isa, rng):
    x = rng.normal(size=500).astype(np.float16) * 8
    y = rng.integers(0, 2, 500)
    loss, grad = with_grad(x, y, reduction="none")
    expected_loss, expected_grad, _ = reference.binary_cross_entropy(x, y, reduction="none")
    assert loss.dtype == np.float32
    assert grad.dtype == np.float16
    assert reference.ulp_error(loss, expected_loss, np.float32) <= LOSS_ULP[np.float32]
    assert reference.ulp_error(grad, expected_grad, np.float16) <= 1


@dtypes
def test_infinities_and_nan(dtype, isa):
    x = np.array([inf, inf, -inf, -inf, nan, nan, 3], dtype)
    y = [1, 0, 1, 0, 1, 0, 1]
    loss, grad = with_grad(x, y, reduction="none")
    np.testing.assert_array_equal(loss[:6], [0, inf, inf, 0, nan, nan])
    np.testing.assert_array_equal(grad[:6], [0, 1, -1, 0, nan, nan])
    assert np.isfinite(loss[6])
    assert np.isfinite(grad[6])
    for gamma in (0.0, 0.5, 2.0):
        loss, grad = fastce.binary_focal_loss_with_grad(x, y, gamma=gamma, reduction="none")
        np.testing.assert_array_equal(loss[:6], [0, inf, inf, 0, nan, nan])
        np.testing.assert_array_equal(grad[:6], [0, 1, -1, 0, nan, nan])
        assert np.isfinite(loss[6])


def test_infinities_that_no_weight_asks_about_cost_nothing(isa):
    loss, grad = with_grad([-inf, inf], [1, 1], pos_weight=[0, 3], reduction="none")
    np.testing.assert_array_equal(loss, [0, 0])
    np.testing.assert_array_equal(grad, [0, 0])


def test_soft_targets_of_infinite_logits(isa):
    loss, grad = with_grad([inf, -inf], [0.5, 0.5], reduction="none")
    np.testing.assert_array_equal(loss, [inf, inf])
    np.testing.assert_array_equal(grad, [0.5, -0.5])


logits = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=70)


@given(logits, st.integers(0, 2**70))
def test_it_is_cross_entropy_of_two_classes(x, bits):
    x = np.array(x)
    y = np.array([bits >> i & 1 for i in range(x.size)])
    pairs = np.stack([np.zeros_like(x), x], 1)
    loss, grad = fastce.cross_entropy_with_grad(pairs, y, reduction="none")
    actual_loss, actual_grad = with_grad(x, y, reduction="none")
    last_bit = np.finfo(float).smallest_subnormal  # of a subnormal, which is rounded once more
    np.testing.assert_allclose(actual_loss, loss, rtol=4e-15, atol=last_bit)
    np.testing.assert_allclose(actual_grad, grad[:, 1], rtol=4e-15, atol=last_bit)


@given(logits, st.integers(0, 2**70), st.sampled_from([0.0, 0.3]))
def test_no_is_the_yes_of_minus_x(x, bits, smoothing):
    x = np.array(x)
    y = np.array([bits >> i & 1 for i in range(x.size)])
    loss, grad = with_grad(x, y, label_smoothing=smoothing)
    mirrored_loss, mirrored_grad = with_grad(-x, 1 - y, label_smoothing=smoothing)
    np.testing.assert_allclose(mirrored_loss, loss, rtol=1e-15)
    np.testing.assert_allclose(-mirrored_grad, grad, rtol=1e-14, atol=1e-17)


# ---------- what is not there


@both
@dtypes
def test_an_element_that_is_not_there_is_not_read(name, dtype, isa, rng):
    """Neither its logit, nor its target, be it -1, 7 or NaN; and the mean is of the others."""
    x = rng.normal(size=(40, 7)).astype(dtype)
    kept = rng.uniform(size=x.shape) < 0.7
    y = rng.integers(0, 2, x.shape)
    call = getattr(fastce, name + "_with_grad")
    loss, grad = call(x[kept], y[kept])
    x[~kept] = nan
    y[~kept] = rng.choice([-1, 7], (~kept).sum())
    holes = np.where(kept, y, nan)
    for targets, options in (
        (y, {"where": kept}),
        (y, {"sample_weight": kept}),
        (holes, {"where": kept}),
        (holes, {"sample_weight": kept * 2.0, "where": kept}),
    ):
        actual_loss, actual_grad = call(x, targets, **options)
        assert actual_loss == pytest.approx(float(loss), rel=1e-6)
        np.testing.assert_array_equal(actual_grad[~kept], 0)
        np.testing.assert_allclose(actual_grad[kept], grad, rtol=1e-6)
        each = getattr(fastce, name)(x, targets, reduction="none", **options)
        np.testing.assert_array_equal(each[~kept], 0)


@both
@pytest.mark.parametrize("shape", [(0,), (3, 0), (4,), ()])
def test_nothing_left(name, shape, isa):
    x, y, off = np.ones(shape), np.ones(shape, int), np.zeros(shape, bool)
    call = getattr(fastce, name + "_with_grad")
    for options in ({"where": off}, {"sample_weight": 0.0}):
        loss, grad = call(x, y, **options)
        assert np.isnan(loss)
        np.testing.assert_array_equal(grad, np.zeros(shape))
        assert call(x, y, on_empty="zero", **options)[0] == 0
        assert call(x, y, normalizer=2, **options)[0] == 0
        with pytest.raises(ValueError, match="on_empty"):
            call(x, y, on_empty="raise", **options)


def test_the_mean_as_pytorch_divides_is_a_normalizer(rng):
    x, y, w = rng.normal(size=9), rng.integers(0, 2, 9), rng.uniform(size=9)
    total = fastce.binary_cross_entropy(x, y, sample_weight=w, reduction="sum")
    mean = fastce.binary_cross_entropy(x, y, sample_weight=w)
    assert mean == pytest.approx(total / w.sum(), rel=1e-15)
    assert fastce.binary_cross_entropy(x, y, sample_weight=w, normalizer=9) == total / 9


# ---------- layouts, dtypes, threads


def layouts(x):
    """The same numbers, elsewhere in memory."""
    stepped = np.zeros([2 * n for n in x.shape], x.dtype)[
        tuple(slice(None, None, 2) for _ in x.shape)
    ]
    stepped[...] = x
    yield "Fortran", np.asfortranarray(x)
    yield "stepped", stepped
    yield "reversed", np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1]
    yield "turned", np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1)
    padded = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    padded[..., : x.shape[-1]] = x
    yield "padded", padded[..., : x.shape[-1]]
    yield "unaligned", np.frombuffer(b"x" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
    yield "swapped", x.astype(x.dtype.newbyteorder())


@both
@dtypes
def test_every_layout_has_the_same_bits(name, dtype, isa, rng):
    """Of logits, targets, weights, mask, factors and buffer, and of sums over them."""
    shape = (5, 301, 3)
    x = (rng.normal(size=shape) * 4).astype(dtype)
    y = rng.integers(0, 2, shape).astype(np.int16)
    kept, weight = rng.uniform(size=shape) < 0.8, rng.uniform(size=shape)
    upstream = rng.normal(size=shape)
    call = getattr(fastce, name + "_with_grad")
    options = {"where": kept, "sample_weight": weight}
    expected, expected_grad = call(x, y, **options)
    each, scaled = call(x, y, reduction="none", upstream=upstream, **options)
    zipped = zip(*map(layouts, (x, y, kept, weight, upstream)), strict=True)
    for (kind, x2), (_, y2), (_, kept2), (_, weight2), (_, upstream2) in zipped:
        options2 = {"where": kept2, "sample_weight": weight2}
        for a, b, o in ((x2, y2, options2), (x2, y, options), (x, y2, options), (x, y, options2)):
            loss, grad = call(a, b, **o)
            assert loss == expected, kind
            np.testing.assert_array_equal(grad, expected_grad, kind)
        loss, grad = call(x2, y2, reduction="none", upstream=upstream2, **options2)
        np.testing.assert_array_equal(loss, each, kind)
        np.testing.assert_array_equal(grad, scaled, kind)
        if x2.dtype.isnative and x2.flags.aligned:
            out = np.empty_like(x)
            call(x2, y, out=out, **options)
            np.testing.assert_array_equal(out, expected_grad)
            out = x2.copy(order="K")
            assert call(x, y, out=out, **options)[1] is out
            np.testing.assert_array_equal(out, expected_grad)
            assert call(out, np.where(kept, y, -5), out=out, **options)[1] is out


@dtypes
def test_broadcast_inputs_equal_whole_ones(dtype, isa, rng):
    shape = (31, 40, 6)
    x = np.broadcast_to(rng.normal(size=(31, 1, 6)).astype(dtype), shape)
    y = np.broadcast_to(rng.integers(0, 2, (40, 1)), shape)
    options = {
        "sample_weight": rng.uniform(size=(31, 1, 1)),
        "pos_weight": rng.uniform(size=6) * 3,
        "where": rng.uniform(size=(40, 1)) < 0.7,
    }
    whole = {k: np.broadcast_to(v, shape).copy() for k, v in options.items()}
    expected = with_grad(x.copy(), y.copy(), **whole)
    actual = with_grad(x, y, **options)
    assert actual[0] == expected[0]
    np.testing.assert_array_equal(actual[1], expected[1])
    scalar = with_grad(x, y, sample_weight=2.0, pos_weight=3)
    assert scalar[0] == with_grad(x, y, pos_weight=np.full(shape, 3.0))[0]


@pytest.mark.parametrize("n", [1, 7, 255, 256, 257, 2047, 2049, 100_001])
@dtypes
def test_every_size_and_number_of_threads_has_the_same_bits(n, dtype, isa, rng):
    x = rng.normal(size=n).astype(dtype)
    y = rng.integers(0, 2, n).astype(np.uint8)
    expected = with_grad(x, y, n_threads=1)
    ours = reference.binary_cross_entropy(x, y)
    assert reference.ulp_error(expected[0], ours[0], dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(expected[1], ours[1], dtype) <= GRAD_ULP[dtype] + 1  # times 1 / n
    for n_threads in (2, 3, 8):
        actual = with_grad(x, y, n_threads=n_threads)
        assert actual[0] == expected[0]
        np.testing.assert_array_equal(actual[1], expected[1])


def test_streaming_stores_have_the_same_bits(isa, rng):
    """From 8 MB of gradient on, at any alignment; the elements around it stay."""
    n = (1 << 21) + 77
    x = rng.normal(size=n).astype(np.float32)
    y = rng.integers(0, 2, n).astype(bool)
    for skip in (0, 1, 5):
        room = np.full(n + 64, 7, np.float32)
        out = room[skip : skip + n]
        with_grad(x, y, out=out, reduction="sum")
        _, last = with_grad(x[-1000:], y[-1000:], reduction="sum")
        np.testing.assert_array_equal(out[-1000:], last)
        assert (room[:skip] == 7).all()
        assert (room[skip + n :] == 7).all()


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i8"])
def test_labels_of_any_integer_dtype(dtype, isa, rng):
    x, y = rng.normal(size=300), rng.integers(0, 2, 300)
    expected = with_grad(x, y.astype(float))
    actual = with_grad(x, y.astype(dtype))
    assert actual[0] == expected[0]
    np.testing.assert_array_equal(actual[1], expected[1])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", np.longdouble])
def test_soft_targets_of_any_float_dtype(dtype, isa, rng):
    t = rng.integers(0, 17, 300) / 16  # exact in every dtype
    x = rng.normal(size=300)
    expected = with_grad(x, t)
    actual = with_grad(x, t.astype(dtype))
    assert actual[0] == expected[0]
    np.testing.assert_array_equal(actual[1], expected[1])


def test_an_element_alone():
    loss, grad = with_grad(2.0, 1)
    assert np.ndim(loss) == 0
    assert grad.shape == ()
    assert isinstance(with_grad(np.float32(2), True, reduction="none")[0], np.float32)


def test_a_gradient_of_another_dtype(isa, rng):
    x, y = rng.normal(size=300).astype(np.float32), rng.integers(0, 2, 300)
    out = np.empty(300)
    assert with_grad(x, y, out=out)[1] is out
    np.testing.assert_array_equal(out, with_grad(x, y)[1])


# ---------- refusals

X = np.zeros((4, 3), np.float32)
Y = np.ones((4, 3), np.int8)


def changed(dtype, value, at=(2, 1)):
    y = Y.astype(dtype)
    y[at] = value
    return y


@both
@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (changed("i1", -1), {}, r"targets\[2, 1\] is -1, neither 0 nor 1"),
        (changed("i8", 2), {}, r"targets\[2, 1\] is 2, neither 0 nor 1"),
        (changed("i8", 1 << 40), {}, r"targets\[2, 1\] is 1099511627776, neither"),
        (changed("u8", 2**64 - 1), {}, r"targets\[2, 1\] is 18446744073709551615, neither"),
        (changed("f4", nan), {}, r"targets\[2, 1\] is nan, (outside \[0, 1\]|neither)"),
        (changed("f8", 1.01), {}, r"targets\[2, 1\] is 1.01, (outside \[0, 1\]|neither)"),
        (changed("f8", -0.01), {}, r"targets\[2, 1\] is -0.01, (outside \[0, 1\]|neither)"),
        (changed("i1", 5).T.copy().T, {}, r"targets\[2, 1\] is 5"),
        (changed("i1", 5)[::-1], {}, r"targets\[1, 1\] is 5"),
        (
            changed("i1", 5, [0, 2]),
            {"where": [[False]] * 2 + [[True]] * 2},
            r"targets\[2, 0\] is 5",
        ),
        (Y[:3], {}, r"targets.*\(4, 3\).*\(3, 3\)"),
        (Y[:, :1], {}, r"targets.*\(4, 3\).*\(4, 1\)"),
        (1, {}, r"targets.*\(4, 3\).*\(\)"),
        (Y.astype(complex), {}, "targets"),
        (Y.astype(object), {}, "targets"),
        (Y, {"sample_weight": np.ones(4)}, r"sample_weight.*\(4, 3\).*\(4,\)"),
        (Y, {"sample_weight": -1.0}, "sample_weight.*-1"),
        (Y, {"sample_weight": [1, nan, 1]}, r"sample_weight\[1\] is nan"),
        (Y, {"where": np.ones((2, 3), bool)}, r"where.*\(4, 3\).*\(2, 3\)"),
        (Y, {"where": np.ones((4, 3))}, "where"),
        (Y, {"where": np.ones((1, 4, 3), bool)}, "where"),
        (Y, {"reduction": "average"}, "reduction.*'average'"),
        (Y, {"on_empty": "no"}, "on_empty.*'no'"),
        (Y, {"normalizer": 0}, "normalizer.*0"),
        (Y, {"normalizer": 1, "reduction": "sum"}, "normalizer"),
        (Y, {"n_threads": 0}, "n_threads.*0"),
        (Y, {"upstream": np.ones((4, 3))}, "upstream"),
        (Y, {"upstream": np.ones(3), "reduction": "none"}, r"upstream.*\(4, 3\)"),
        (Y, {"out": np.empty((3, 4), np.float32)}, r"out.*\(4, 3\)"),
        (Y, {"out": np.empty((4, 3), int)}, "out"),
        (Y, {"out": np.broadcast_to(np.float32(0), (4, 3))}, "out"),
    ],
)
def test_a_bad_call_is_refused_and_nothing_written(name, targets, options, message):
    options = {"out": np.full((4, 3), 7, np.float32), **options}
    before = options["out"].copy()
    with pytest.raises((ValueError, TypeError), match=message) as info:
        getattr(fastce, name + "_with_grad")(X, targets, **options)
    assert "\n" not in str(info.value)
    np.testing.assert_array_equal(options["out"], before)
    if options.keys() <= {"out", "where", "sample_weight"} and "out" not in message:
        options.pop("out")
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(fastce, name)(X, targets, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("binary_cross_entropy", {"pos_weight": -1.0}),
        ("binary_cross_entropy", {"pos_weight": [1.0] * 4}),
        ("binary_cross_entropy", {"label_smoothing": 1.5}),
        ("binary_cross_entropy", {"label_smoothing": nan}),
        ("binary_focal_loss", {"gamma": -1}),
        ("binary_focal_loss", {"gamma": nan}),
        ("binary_focal_loss", {"alpha": 1.5}),
        ("binary_focal_loss", {"alpha": -1}),
        ("binary_focal_loss", {"alpha": "a"}),
        ("binary_focal_loss", {"pos_weight": 1.0}),
    ],
    ids=str,
)
def test_a_bad_parameter_is_refused(name, options):
    for call in (getattr(fastce, name), getattr(fastce, name + "_with_grad")):
        with pytest.raises((ValueError, TypeError), match=re.escape(next(iter(options)))):
            call(X, Y, **options)


def test_soft_targets_may_miss_by_a_rounding():
    """1 + 2**-10 is the float16 after 1, what an average of labels may round to."""
    for target in (1 + 2**-10, -(2**-10)):
        assert np.isfinite(fastce.binary_cross_entropy([0.5], [target]))
        with pytest.raises(ValueError, match="outside"):
            fastce.binary_cross_entropy([0.5], [2 * target])
    with pytest.raises(ValueError, match=r"targets\[0\] is 0.5, neither 0 nor 1"):
        fastce.binary_focal_loss([0.5], [0.5])


@pytest.mark.parametrize("bad", [0, 9999, 65_535, 99_999])
def test_a_bad_target_is_found_by_any_thread_before_a_gradient_is_written(bad, isa):
    x, y, out = (
        np.zeros(100_000, np.float32),
        np.zeros(100_000, bool).view(np.int8),
        np.ones(100_000),
    )
    y[bad:] = 3
    with pytest.raises(ValueError, match=rf"targets\[{bad}\] is 3"):
        with_grad(x, y, out=out, n_threads=3)
    assert (out == 1).all()


def test_out_may_be_the_logits_and_shares_memory_with_nothing_else(isa, rng):
    x, y, w = rng.normal(size=64), rng.integers(0, 2, 64).astype(float), rng.uniform(size=64)
    loss, grad = with_grad(x, y, sample_weight=w)
    for name, out in (("targets", y), ("sample_weight", w)):
        before = out.copy()
        with pytest.raises(ValueError, match=f"out.*{name}"):
            with_grad(x, y, sample_weight=w, out=out)
        np.testing.assert_array_equal(out, before)
    room = np.zeros(65)
    room[:64] = x
    with pytest.raises(ValueError, match="out"):
        with_grad(room[:64], y, out=room[1:])
    assert with_grad(x, y, sample_weight=w, out=x)[0] == loss
    np.testing.assert_array_equal(x, grad)
