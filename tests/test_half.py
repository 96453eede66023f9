"""float16 and bfloat16 logits: float32 losses, gradients rounded once, every conversion exact.

The oracle sees the very numbers that the halves hold.
"""

from functools import cache

import numpy as np
import pytest
import reference
from reference import GRAD_ULP, LOSS_ULP

import fastce
from fastce.mlp import load_mnist

ml_dtypes = pytest.importorskip("ml_dtypes")

HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# A gradient has float32's 4 ulp, which are 2^-11 ulp of a float16 and less of a bfloat16, when it
# is rounded.  Rounding twice, or computing in halves, is off by more.
HALF_GRAD_ULP = 0.5 + 2**-11

N_ROWS = 37  # two blocks of 16 lanes and a tail
N_CLASSES = (1, 2, 10, 16, 17, 33, 65, 112, 113, 224, 225, 1000, 1025, 5000)


@pytest.fixture(params=HALVES)
def half(request):
    return HALVES[request.param]


def largest(half):
    return float(ml_dtypes.finfo(half).max)


def masked(x):
    """Every second class in every second row, and all but one in the last."""
    x = x.copy()
    x[::2, 1::2] = -np.inf
    x[-1, 1:] = -np.inf
    return x


# name: logits of shape (n_rows, n_classes) from a standard normal x
CASES = {
    "normal": lambda x, half: x,
    "confident": lambda x, half: x * np.linspace(1, 60, len(x))[:, None],
    "offset 1e4": lambda x, half: 20 * x + 1e4,
    "offset -1e4": lambda x, half: 20 * x - 1e4,
    "equal": lambda x, half: np.full_like(x, 3.3),
    "huge": lambda x, half: np.clip(0.3 * x, -1, 1) * largest(half),
    "subnormal": lambda x, half: x * 0.1 * float(ml_dtypes.finfo(half).tiny),
    "masked": lambda x, half: masked(3 * x),
}


def rows_for(n_classes):
    return N_ROWS if n_classes <= 113 else 5


@cache
def solved(case, half, n_classes):
    """Logits, targets (a third of them the top class) and the oracle's losses and gradients."""
    rng = np.random.default_rng([n_classes, *case.encode()])
    x = CASES[case](rng.normal(size=(rows_for(n_classes), n_classes)), half).astype(half)
    y = rng.integers(0, n_classes, len(x))
    y[::3] = x.astype(float).argmax(1)[::3]
    loss, grad, _ = reference.cross_entropy(x, y, reduction="none")
    return x, y, loss, grad


def same(actual, expected):
    """To the bit, but for the bits within a NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bits = f"u{actual.itemsize}"
    differ = actual.view(bits) != expected.view(bits)
    differ &= ~(np.isnan(actual) & np.isnan(expected))
    assert not differ.any(), f"{differ.sum()} of {differ.size} differ, first at {differ.argmax()}"


# ---------- accuracy


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_within_the_contract(case, half, isa):
    for n_classes in N_CLASSES:
        x, y, expected_loss, expected_grad = solved(case, half, n_classes)
        loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
        assert loss.dtype == np.float32
        assert grad.dtype == half
        assert reference.ulp_error(loss, expected_loss, np.float32) <= LOSS_ULP[np.float32]
        assert reference.ulp_error(grad, expected_grad, half) <= HALF_GRAD_ULP, n_classes
        wide, wider = (
            fastce.cross_entropy_with_grad(x, y, reduction="none", out=np.empty(x.shape, dtype))[1]
            for dtype in (np.float32, np.float64)
        )
        error = reference.ulp_error(wide, expected_grad, np.float32)
        assert error <= GRAD_ULP[np.float32], n_classes
        np.testing.assert_array_equal(wider, wide)
        same(wide.astype(half), grad)


@pytest.mark.parametrize("n_classes", [10, 120])
def test_the_mean_of_many_rows(n_classes, half, isa, rng):
    """The gradient of each of 70,000 rows is subnormal in float16; a divisor in float16 is inf."""
    x = rng.normal(size=(70_000, n_classes)).astype(half)
    y = rng.integers(0, n_classes, len(x))
    loss, grad = fastce.cross_entropy_with_grad(x, y)
    few = slice(0, None, 100)
    _, expected, _ = reference.cross_entropy(x[few], y[few], reduction="sum")
    assert reference.ulp_error(grad[few], expected / len(x), half) <= HALF_GRAD_ULP
    e = np.exp(x.astype(float))
    expected = np.mean(np.log(e.sum(1)) - x.astype(float)[np.arange(len(x)), y])
    assert type(loss) is np.float32
    assert reference.ulp_error(loss, expected, np.float32) <= LOSS_ULP[np.float32]


@pytest.mark.parametrize("n_classes", N_CLASSES)
def test_primitives(n_classes, half, isa):
    for case in CASES:
        x, _, _, _ = solved(case, half, n_classes)
        p = fastce.softmax(x)
        assert p.dtype == half
        assert reference.ulp_error(p, reference.softmax(x), half) <= HALF_GRAD_ULP
        log_p = fastce.log_softmax(x)
        assert log_p.dtype == half
        assert reference.ulp_error(log_p, reference.log_softmax(x), half) <= HALF_GRAD_ULP
        lse = fastce.logsumexp(x)
        assert lse.dtype == np.float32
        # near 0 the maximum and log1p(the others) cancel, whose error is an exponential's
        error, size = abs(lse - reference.logsumexp(x)), abs(reference.logsumexp(x))
        assert (error <= 2**-23 * (1 + size)).all()


def some_options(rng, x):
    rows, classes = x.shape
    soft = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    return {
        "label_smoothing": {"label_smoothing": 0.1},
        "softcap": {"softcap": 5.0},
        "logit_scale": {"logit_scale": 0.7},
        "z_loss": {"z_loss": 1e-2},
        "where rows": {"where": rng.uniform(size=rows) < 0.7},
        "where classes": {"where": (rng.uniform(size=x.shape) < 0.7) | (np.arange(classes) == 0)},
        "soft targets": {"targets": soft},
        "soft and smooth": {"targets": soft, "label_smoothing": 0.2},
        "class_weight": {"class_weight": rng.uniform(size=classes)},
        "sample_weight": {"sample_weight": rng.uniform(size=rows)},
        "upstream": {"upstream": rng.normal(size=rows), "reduction": "none"},
        "all": {"label_smoothing": 0.1, "softcap": 9.0, "logit_scale": 1.7, "z_loss": 1e-3,
                "class_weight": rng.uniform(size=classes)},
    }  # fmt: skip


@pytest.mark.parametrize("n_classes", [3, 17, 120, 1025])
@pytest.mark.parametrize("name", some_options(np.random.default_rng(0), np.zeros((1, 1))))
def test_options(name, n_classes, half, isa):
    """Half logits give what the same numbers give in float32, rounded: within the oracle's ulps."""
    rng = np.random.default_rng(n_classes)
    x = (4 * rng.normal(size=(rows_for(n_classes), n_classes))).astype(half)
    options = {"targets": rng.integers(0, n_classes, len(x)), **some_options(rng, x)[name]}
    if name == "where classes":  # a label that is hidden loses infinitely
        options["targets"][:] = 0
    expected_loss, expected_grad, expected_hess = reference.cross_entropy(x, **options)
    loss, grad, hess = fastce.cross_entropy_with_grad_hess(x, **options)
    assert reference.ulp_error(loss, expected_loss, np.float32) <= LOSS_ULP[np.float32]
    as_float32 = x.astype(np.float32)
    wide = fastce.cross_entropy_with_grad_hess(as_float32, **options)
    assert loss.dtype == wide[0].dtype
    np.testing.assert_array_equal(loss, wide[0])
    for actual, expected in ((grad, expected_grad), (hess, expected_hess)):
        assert actual.dtype == half
        # Terms cancel down to an eps of the largest, in the oracle's arguments already (softcap).
        error = abs(actual.astype(float) - np.asarray(expected.astype(half), float))
        unit = abs(np.asarray(expected, float)) * float(ml_dtypes.finfo(half).eps)
        unit += float(ml_dtypes.finfo(half).smallest_subnormal)
        assert (error <= 1.01 * unit + 1e-6 * abs(expected).max()).all()
    same(wide[1].astype(half), grad)
    same(wide[2].astype(half), hess)


@pytest.mark.parametrize("n_classes", [3, 17, 120])
@pytest.mark.parametrize(
    "name", ["focal_loss", "generalized_cross_entropy", "symmetric_cross_entropy", "poly1_loss"]
)
def test_robust_losses(name, n_classes, half, isa, rng):
    x = (4 * rng.normal(size=(N_ROWS, n_classes))).astype(half)
    y = rng.integers(0, n_classes, N_ROWS)
    loss, grad = getattr(fastce, f"{name}_with_grad")(x, y, reduction="none")
    expected_loss, expected_grad = getattr(reference, name)(x, y, reduction="none")
    assert reference.ulp_error(loss, expected_loss, np.float32) <= 4
    assert reference.ulp_error(grad, expected_grad.astype(half), half) <= 1


# ---------- layouts

inf, nan = np.inf, np.nan


def spread(a, step):
    b = np.full([n * abs(step) for n in a.shape], 7, a.dtype)
    b[(slice(None, None, step),) * a.ndim] = a
    return b[(slice(None, None, step),) * a.ndim]


def moved_by_2_bytes(a):
    b = np.zeros(a.size + 1, a.dtype)[1:].reshape(a.shape)
    b[...] = a
    return b


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda a: spread(a, -1),
    "every second": lambda a: spread(a, 2),
    "rows reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "classes reversed": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "an odd multiple of 2 bytes": moved_by_2_bytes,
    "another byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_has_the_bits_of_the_contiguous_one(layout, half, isa, rng):
    if layout == "another byte order" and half.name == "bfloat16":
        pytest.skip("ml_dtypes has no other byte order")
    for n_classes in (1, 3, 10, 33, 65, 120, 1025):
        x = (3 * rng.normal(size=(N_ROWS, n_classes))).astype(half)
        y = rng.integers(0, n_classes, N_ROWS)
        loss, grad = fastce.cross_entropy_with_grad(x, y)
        other = LAYOUTS[layout](x)
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(other, y)
        assert actual_loss == loss
        assert fastce.cross_entropy(other, y) == loss
        same(np.ascontiguousarray(actual_grad), grad)
        same(np.ascontiguousarray(fastce.log_softmax(other)), fastce.log_softmax(x))
        same(fastce.logsumexp(other), fastce.logsumexp(x))
        if layout not in ("another byte order", "unaligned"):
            out = LAYOUTS[layout](np.zeros_like(x))
            assert fastce.cross_entropy_with_grad(x, y, out=out)[1] is out
            same(np.ascontiguousarray(out), grad)
            assert fastce.cross_entropy_with_grad(other, y, out=other)[1] is other  # in place
            same(np.ascontiguousarray(other), grad)


@pytest.mark.parametrize("n_classes", [3, 21, 70])
def test_images_have_the_bits_of_rows(n_classes, half, isa, rng):
    x = (3 * rng.normal(size=(2, n_classes, 5, 9))).astype(half)
    y = rng.integers(0, n_classes, (2, 5, 9))
    last = np.moveaxis(x, 1, -1)
    loss, grad = fastce.cross_entropy_with_grad(np.ascontiguousarray(last), y)
    for images in (x, np.asfortranarray(x), np.ascontiguousarray(last).transpose(0, 3, 1, 2)):
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(images, y, axis=1)
        assert actual_loss == loss
        same(np.ascontiguousarray(np.moveaxis(actual_grad, 1, -1)), grad)


@pytest.mark.parametrize(
    "shape", [(500, 2), (37, 10), (37, 112), (37, 113), (37, 225), (4500, 1001)], ids=str
)
def test_in_place(shape, half, isa, rng):
    """Also with options, and where another gradient would be streamed past the caches."""
    rows, n_classes = shape
    x = np.resize(rng.normal(size=10_007).astype(half), shape)
    y = rng.integers(0, n_classes, rows)
    for options in ({}, {"label_smoothing": 0.1}):
        loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
        buffer = x.copy()
        actual_loss, actual = fastce.cross_entropy_with_grad(buffer, y, out=buffer, **options)
        assert actual is buffer
        assert actual_loss == loss
        same(buffer, grad)


@pytest.mark.parametrize("shape", [(20_000, 10), (999, 33), (400, 1000), (3, 50_257)], ids=str)
def test_same_bits_for_any_number_of_threads_and_any_place(shape, half, isa, rng):
    x = (5 * rng.normal(size=shape)).astype(half)
    y = rng.integers(0, shape[1], shape[0])
    loss, grad = fastce.cross_entropy_with_grad(x, y, n_threads=1)
    for n_threads in (2, 3, 8):
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, n_threads=n_threads)
        assert actual_loss == loss
        same(actual_grad, grad)
    _, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    for i in range(0, shape[0], 1 + shape[0] // 20):
        rows = slice(i, i + 3)
        same(fastce.cross_entropy_with_grad(x[rows], y[rows], reduction="none")[1], grad[rows])


# ---------- special values

# name: a row with the label 1, its loss, its gradient
SPECIAL = {
    "masked class": ([-inf, 0.0, 0.0], np.log(2), [0.0, -0.5, 0.5]),
    "masked label": ([0.0, -inf, 0.0], inf, [0.5, -1.0, 0.5]),
    "label alone": ([-inf, 7.0, -inf], 0.0, [0.0, 0.0, 0.0]),
    "all masked": ([-inf, -inf, -inf], nan, [nan, nan, nan]),
    "NaN label": ([0.0, nan, 1.0], nan, [nan, nan, nan]),
    "NaN elsewhere": ([0.0, 1.0, nan], nan, [nan, nan, nan]),
    "NaN first": ([nan, 1.0, 2.0], nan, [nan, nan, nan]),
    "+inf label": ([0.0, inf, 1.0], nan, [nan, nan, nan]),
    "+inf and -inf": ([inf, 0.0, -inf], nan, [nan, nan, nan]),
    "subnormal": ([1e-7, -1e-7, 6e-8], np.log(3), [1 / 3, -2 / 3, 1 / 3]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values_stay_in_their_row(name, half, isa):
    """n_more masked classes lengthen the row; the rows around it keep the bits they have alone."""
    row, loss, grad = SPECIAL[name]
    for n_more in (0, 7, 30, 97, 1022):
        x = np.random.default_rng(n_more).normal(size=(35, 3 + n_more)).astype(half)
        y = np.full(35, 1)
        alone_loss, alone_grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
        x[17] = np.array([*row, *[-inf] * n_more], half)
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
        np.testing.assert_allclose(actual_loss[17], loss, rtol=1e-6)
        expected = np.array([*grad, *[nan if np.isnan(loss) else 0.0] * n_more], half)
        np.testing.assert_array_equal(actual_grad[17].astype(float), expected.astype(float))
        others = np.arange(35) != 17
        np.testing.assert_array_equal(actual_loss[others], alone_loss[others])
        same(actual_grad[others], alone_grad[others])


@pytest.mark.parametrize("n_classes", [2, 10, 130])
def test_nan_is_nan_whatever_else_the_row_holds(n_classes, half, isa, rng):
    """Some of what a NaN's other bits may be is rounded to -0."""
    x = rng.normal(0, 100, (2000, n_classes))
    x[:, -1] = np.nan
    y = rng.integers(0, n_classes, len(x))
    grad = fastce.cross_entropy_with_grad(x.astype(half), y)[1]
    assert np.isnan(grad.astype(np.float32)).all()


ODD_DOUBLES = np.array([-1, 2**63 - 1, 0x7FFFFFF << 36, (0x7FF << 52) + 1]).view(np.float64)
ODD_NANS = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000, 0x7F800001], np.uint32).view(np.float32)


@pytest.mark.parametrize("n_classes", [10, 130])
@pytest.mark.parametrize("options", [{}, {"softcap": 20.0}, {"hess": True}], ids=str)
def test_nan_of_any_bits_is_nan_in_soft_targets(n_classes, options, half, isa, rng):
    x = rng.normal(size=(40, n_classes)).astype(half)
    q = np.full(x.shape, 1 / n_classes, np.float32)
    others = np.arange(40) != 17
    for nan in ODD_NANS:
        q[17, 3] = nan
        if "hess" in options:
            _, grad, hess = fastce.cross_entropy_with_grad_hess(x, q, reduction="none")
            assert not np.isnan(hess[others].astype(np.float32)).any()
        else:
            _, grad = fastce.cross_entropy_with_grad(x, q, reduction="none", **options)
        assert np.isnan(grad[17].astype(np.float32)).all()
        assert not np.isnan(grad[others].astype(np.float32)).any()


@pytest.mark.parametrize("n_classes", [1, 2, 10, 130])
@pytest.mark.parametrize("options", [{}, {"softcap": 20.0}, {"z_loss": 0.1}], ids=str)
def test_nan_of_any_bits_is_nan_upstream(n_classes, options, half, isa, rng):
    """Of one number for all rows and of one a row, in memory order and not."""
    x = rng.normal(size=(40, n_classes)).astype(half)
    y = rng.integers(0, n_classes, len(x))
    for nan in ODD_DOUBLES:
        for logits in (x, np.asfortranarray(x)):
            _, grad = fastce.cross_entropy_with_grad(logits, y, upstream=nan, **options)
            assert np.isnan(grad.astype(np.float32)).all()
            upstream = np.where(np.arange(40) == 17, nan, 1)
            _, grad = fastce.cross_entropy_with_grad(
                logits, y, reduction="none", upstream=upstream, **options
            )
            assert np.isnan(grad.astype(np.float32)).any(1).tolist() == [i == 17 for i in range(40)]


def test_nan_of_any_bits_is_nan_in_binary_losses(half, isa, rng):
    x = rng.normal(size=3_000_000).astype(half)  # past the caches, by vectors
    upstream = np.ones(x.shape)
    upstream[17 :: len(x) // 3] = ODD_DOUBLES[:3]
    _, grad = fastce.binary_cross_entropy_with_grad(x, x > 0, reduction="none", upstream=upstream)
    np.testing.assert_array_equal(np.isnan(grad.astype(np.float32)), np.isnan(upstream))


@pytest.mark.parametrize("n_classes", [3, 33, 120])
@pytest.mark.parametrize("poison", [nan, inf, -inf])
def test_an_ignored_row_is_never_read(poison, n_classes, half, isa, rng):
    x = rng.normal(size=(40, n_classes)).astype(half)
    y = rng.integers(0, n_classes, 40)
    gone = np.arange(40) % 3 == 1
    loss, grad = fastce.cross_entropy_with_grad(x[~gone], y[~gone])
    x[gone] = poison
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, np.where(gone, -100, y))
    np.testing.assert_allclose(actual_loss, loss, rtol=1e-7)  # other rows share a sum's tree
    assert not actual_grad[gone].astype(float).any()
    same(actual_grad[~gone], grad)


# ---------- conversions, all of them


def every(half):
    return np.arange(65536, dtype=np.uint16).view(half)


def one_of(values, n_classes, layout):
    """A row per value: it stands in any of the places, and all else is masked."""
    x = np.full((len(values), n_classes), -inf, values.dtype)
    x[np.arange(len(x)), np.arange(len(x)) % n_classes] = values
    return LAYOUTS[layout](x) if layout else x


@pytest.mark.parametrize("n_classes", [1, 3, 16, 35, 117])
@pytest.mark.parametrize("layout", [None, "Fortran", "every second"])
def test_every_half_is_read_exactly(n_classes, layout, half, isa):
    """logsumexp of a value alone is the value: by vectors of rows, of classes and one by one."""
    values = every(half)
    with np.errstate(invalid="ignore"):  # NaNs of the kind that signals
        expected = values.astype(np.float32)
    lse = fastce.logsumexp(one_of(values, n_classes, layout))
    np.testing.assert_array_equal(lse, expected)  # -0 may be 0
    p = fastce.softmax(values[:, None]).astype(float)[:, 0]
    np.testing.assert_array_equal(p, np.where(np.isfinite(expected), 1.0, nan))


def around_every(half):
    """All positive halves, the float32s half-way between two and their neighbours; zero; beyond."""
    h = every(half)[: np.array(inf, half).view(np.uint16)].astype(np.float64)
    beyond = h[-1] + (h[-1] - h[-2])  # where the next one would stand, but is inf
    half_way = (h + np.append(h[1:], beyond)) / 2
    half_way = half_way.astype(np.float32)
    return np.concatenate([
        h.astype(np.float32), half_way,
        np.nextafter(half_way, np.float32(0)), np.nextafter(half_way, np.float32(inf)),
    ])  # fmt: skip


@pytest.mark.parametrize("n_classes", [2, 3, 19, 66, 133])
@pytest.mark.parametrize("logits", ["half", "half, Fortran", "half, every second", "float32"])
def test_every_half_is_rounded_to_evenly(n_classes, logits, half, isa):
    """Two classes share the probability: the gradient is half the upstream factor, of either sign.

    In memory order, by vectors and one by one; float32 logits have gradients of another dtype.
    """
    g = around_every(half)
    g = g if n_classes < 60 else g[::7]  # all in little memory
    with np.errstate(over="ignore", under="ignore"):
        expected = g.astype(half)
    at = np.arange(len(g)) % (n_classes - 1)
    x = np.full((len(g), n_classes), -inf, np.float32 if logits == "float32" else half)
    x[np.arange(len(g)), at] = x[np.arange(len(g)), at + 1] = 0
    layout = logits.partition(", ")[2]
    x = LAYOUTS[layout](x) if layout else x
    out = np.empty_like(x, dtype=half)
    upstream = 2 * g.astype(np.float64)
    fastce.cross_entropy_with_grad(x, at, reduction="none", upstream=upstream, out=out)
    out = np.ascontiguousarray(out)
    for j, sign in ((at, -1.0), (at + 1, 1.0)):
        actual = sign * out[np.arange(len(g)), j].astype(float)
        if isa != "baseline" and (j is not at or n_classes > 112):
            # A float's last bit off, as a table's terms have a factor that is no power of two.
            with np.errstate(over="ignore", under="ignore"):
                near = [np.nextafter(g, np.float32(end)).astype(half) for end in (-inf, inf)]
            same = np.logical_or.reduce([actual == h.astype(float) for h in (*near, expected)])
            assert same.all(), g[~same]
        else:
            np.testing.assert_array_equal(actual, expected.astype(float))  # -0 may be 0


def accuracy_after_training(logits_dtype):
    """Of a 784-64-10 network on the embedded images, after three epochs of gradient descent with
    momentum, where only the logits and their gradient have this dtype."""
    X, y, X_test, y_test = load_mnist()
    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal(shape) * np.sqrt(2 / shape[0])).astype(np.float32)
        for shape in ((784, 64), (64, 10))
    ]
    moments = [np.zeros_like(weight) for weight in weights]
    for _ in range(3):
        for rows in np.array_split(rng.permutation(len(X)), len(X) // 64):
            hidden = np.maximum(X[rows] @ weights[0], 0)
            logits = (hidden @ weights[1]).astype(logits_dtype)
            _, grad = fastce.cross_entropy_with_grad(logits, y[rows])
            grad = grad.astype(np.float32)
            grads = X[rows].T @ (grad @ weights[1].T * (hidden > 0)), hidden.T @ grad
            for weight, moment, slope in zip(weights, moments, grads, strict=True):
                moment *= 0.9
                moment += slope
                weight -= 0.05 * moment
    predicted = (np.maximum(X_test @ weights[0], 0) @ weights[1]).argmax(1)
    return (predicted == y_test).mean()


def test_training_on_half_logits_learns_as_well(half):
    """Within 0.01: two seeds of the same training differ by 0.005 on 2,000 images."""
    single = accuracy_after_training(np.float32)
    assert single > 0.9
    assert abs(accuracy_after_training(half) - single) < 0.01
