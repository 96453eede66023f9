"""The numerics contract: float32 loss within 2 ulp and gradient within 4, float64 within 4 and 8.

For rows of every difficulty, on every instruction set; and NaN, infinities and masks.
"""

from functools import cache

import numpy as np
import pytest
import reference
from reference import GRAD_ULP, LOSS_ULP

import fastce

N_ROWS = 37  # two blocks of 16 lanes and a tail
N_CLASSES = (1, 2, 3, 9, 10, 16, 17, 33, 100, 113, 1025)

dtypes = pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        pytest.param(
            np.float64,
            marks=pytest.mark.skipif(not reference.wide, reason="longdouble is a double here"),
        ),
    ],
)


def raised(x, gaps):
    """Raise one class of each row above the others by a gap."""
    rows = np.arange(len(x))
    x[rows, rows % x.shape[1]] = x.max(1) + gaps
    return x


def masked(rng, x):
    hidden = rng.uniform(size=x.shape) < 0.5
    hidden[:, 0] = False
    return np.where(hidden, -np.inf, x)


# name: logits of shape (n_rows, n_classes) from a standard normal x; info is the dtype's np.finfo
CASES = {
    "normal": lambda x, rng, info: x,
    "wide": lambda x, rng, info: 30 * x,
    "confident": lambda x, rng, info: raised(x, np.linspace(1, 100, len(x))),
    "sure": lambda x, rng, info: raised(0.01 * x, np.linspace(15, 20, len(x))),  # 1 + rest is 1
    "certain": lambda x, rng, info: raised(x, np.linspace(80, 760, len(x))),  # subnormal gradients
    "offset 1e4": lambda x, rng, info: 5 * x + 1e4,
    "offset -1e4": lambda x, rng, info: 5 * x - 1e4,
    "offset 1e7": lambda x, rng, info: 5 * x + 1e7,
    "equal": lambda x, rng, info: np.full_like(x, 3.3),
    "zero": lambda x, rng, info: np.zeros_like(x) * np.sign(x),  # of both signs
    "tied maxima": lambda x, rng, info: np.minimum(x, 0),
    "ascending": lambda x, rng, info: np.sort(20 * x),
    "descending": lambda x, rng, info: -np.sort(20 * x),
    "masked": lambda x, rng, info: masked(rng, 3 * x),
    "all masked but one": lambda x, rng, info: np.where(np.arange(x.shape[1]) == 1, x, -np.inf),
    "subnormal logits": lambda x, rng, info: x * 0.01 * float(info.tiny),
    "tiny logits": lambda x, rng, info: x * 1e-9,
    "huge": lambda x, rng, info: float(info.max) * np.sign(x) * rng.uniform(0.8, 1, x.shape),
    "one is huge": lambda x, rng, info: raised(x, 0.5 * float(info.max)),
    "mixed magnitudes": lambda x, rng, info: x * 10.0 ** rng.integers(-6, 3, x.shape),
}


@cache
def solved(case, dtype, n_classes):
    """Logits, targets (a third of them the top class) and the oracle's losses and gradients."""
    rng = np.random.default_rng([n_classes, *case.encode()])
    x = rng.normal(size=(N_ROWS, n_classes))
    x = CASES[case](x, rng, np.finfo(dtype)).astype(dtype)
    y = rng.integers(0, n_classes, N_ROWS)
    y[::3] = x.argmax(1)[::3]
    loss, grad, _ = reference.cross_entropy(x, y, reduction="none")
    return x, y, loss, grad


@dtypes
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_within_the_contract(case, dtype, isa):
    for n_classes in N_CLASSES:
        x, y, loss, grad = solved(case, dtype, n_classes)
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
        loss_error = reference.ulp_error(actual_loss, loss, dtype)
        assert loss_error <= LOSS_ULP[dtype], f"{n_classes} classes"
        grad_error = reference.ulp_error(actual_grad, grad, dtype)
        assert grad_error <= GRAD_ULP[dtype], f"{n_classes} classes"


@dtypes
@pytest.mark.parametrize("n_classes", [2, 10, 120])
def test_a_confident_row_keeps_its_small_loss(n_classes, dtype, isa):
    """At every gap: peers return exactly 0 in float32 from a gap of 17 on, the truth is 4e-8."""
    gap = np.arange(1, 101, dtype=dtype)
    x = np.zeros((100, n_classes), dtype)
    x[:, 1] = gap
    loss, grad = fastce.cross_entropy_with_grad(x, np.ones(100, int), reduction="none")
    others = (n_classes - 1) * np.exp(-reference.longdouble(gap))
    assert reference.ulp_error(loss, np.log1p(others), dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad[:, 1], -others / (1 + others), dtype) <= GRAD_ULP[dtype]
    assert (loss > 0).all()
    assert (grad[:, 1] < 0).all()


@cache
def rows_with_a_lone_top(n_rows, n_classes, dtype):
    """Others are 2**-5 to 2**-45 (2**-60) of the top, which may come in any block, after others."""
    rng = np.random.default_rng(n_classes)
    x = rng.normal(size=(n_rows, n_classes))
    gaps = rng.uniform(3.5, 31 if dtype == np.float32 else 42, n_rows) + np.log(n_classes)
    rows, y = np.arange(n_rows), rng.integers(0, n_classes, n_rows)
    x[rows, y] = gaps
    x = x.astype(dtype)
    return x, y, *reference.cross_entropy(x, y, reduction="none")[:2]


@dtypes
@pytest.mark.parametrize("shape", [(2000, 200), (300, 2100)], ids=str)
def test_others_are_exact_where_the_top_crowds_them_out(shape, dtype, isa):
    x, y, expected_loss, expected_grad = rows_with_a_lone_top(*shape, dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype]
    alone = fastce.cross_entropy(x, y, reduction="none")
    np.testing.assert_array_equal(alone, loss)


@dtypes
@pytest.mark.parametrize("weight", [1, 500, 1e-30])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 7, 10, 16, 33, 100])
def test_few_classes_are_computed_as_they_lie_or_by_columns(n_classes, weight, dtype, isa, rng):
    """All rows with one reference, which takes the shorter way, or one row that has another."""
    x = (40 * rng.normal(size=(64, n_classes))).astype(dtype)
    x -= x.max(1, keepdims=True) - rng.uniform(0, 20, (64, 1)).astype(dtype)
    y = rng.integers(0, n_classes, 64)
    y[::2] = x.argmax(1)[::2]
    options = {"sample_weight": np.full(64, weight), "reduction": "none"}
    expected_loss, expected_grad, _ = reference.cross_entropy(x, y, **options)
    loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype]
    other = x.copy()
    other[63] -= 1000
    in_columns = fastce.cross_entropy_with_grad(other, y, **options)
    assert in_columns[0][:63].tobytes() == loss[:63].tobytes()
    assert in_columns[1][:63].tobytes() == grad[:63].tobytes()


# From the others' side: near, where a term is 0 as a float, and where it is as a double, too.
GAPS = [0, 1, 50, 109, 110, 300, 660, 680, 690, 700, 760, 797, 800, 1100, 1e4, 1e8, 1e30, 3e37]


@cache
def rows_with_a_hopeless_target(n_classes, dtype):
    rng = np.random.default_rng(n_classes)
    offsets = np.array([0, 20, 10, -5, 40, -40, 400, -400, 600, 1e4, 2000, 1e9])  # four alike
    x = np.repeat(offsets, len(GAPS))[:, None] + rng.normal(size=(12 * len(GAPS), n_classes))
    x = x.astype(dtype)
    y = rng.integers(0, n_classes, len(x))
    x[np.arange(len(x)), y] -= np.tile(GAPS, 12).astype(dtype)
    return x, y, *reference.cross_entropy(x, y, reduction="none")[:2]


@dtypes
@pytest.mark.parametrize("n_classes", [2, 3, 10, 112, 120, 224, 225])
def test_a_target_may_be_as_far_below_as_floats_go(n_classes, dtype, isa):
    """In groups of rows that lie in one another's reference, in groups that do not, and alone."""
    x, y, expected_loss, expected_grad = rows_with_a_hopeless_target(n_classes, dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype]
    columns, columns_grad = fastce.cross_entropy_with_grad(
        np.asfortranarray(x), y, reduction="none"
    )
    assert columns.tobytes() == fastce.cross_entropy(x, y, reduction="none").tobytes()
    assert columns.tobytes() == loss.tobytes()
    assert columns_grad.tobytes() == grad.tobytes()
    for i in range(len(x)):
        own_loss, own_grad = fastce.cross_entropy_with_grad(
            x[i : i + 1], y[i : i + 1], reduction="none"
        )
        assert (own_loss.tobytes(), own_grad.tobytes()) == (loss[i].tobytes(), grad[i].tobytes())


@dtypes
@pytest.mark.parametrize("scale", [1, 0.75])
@pytest.mark.parametrize("n_classes", [3, 10, 33, 100])
def test_what_the_rows_before_had_is_no_more_than_a_guess(n_classes, scale, dtype, isa, rng):
    """Tiles of rows that share a reference, another one, none, or are too large for any."""
    tops = [0, 5, 100, 120, (-100, 0, 100), -200, (1e30, 700), 0, 1e5, -1e5, (-20, -5, 30, 40), 2]
    tops = np.concatenate([np.resize(top, 64) for top in tops])
    x = rng.normal(size=(len(tops), n_classes)) * rng.choice([0.1, 5, 50], (len(tops), 1))
    x = (x - x.max(1, keepdims=True) + tops[:, None]).astype(dtype)
    y = rng.integers(0, n_classes, len(x))
    x[17::50] = nan  # of which every second row is not there
    y[17::100] = -100
    options = {"logit_scale": scale, "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
    columns, columns_grad = fastce.cross_entropy_with_grad(np.asfortranarray(x), y, **options)
    np.testing.assert_array_equal(columns, loss)
    np.testing.assert_array_equal(columns_grad, grad)
    order = rng.permutation(len(x))
    mixed, mixed_grad = fastce.cross_entropy_with_grad(x[order], y[order], **options)
    np.testing.assert_array_equal(mixed, loss[order])
    np.testing.assert_array_equal(mixed_grad, grad[order])
    there = np.isfinite(x).all(1)
    assert np.isnan(loss[67::100]).all()
    assert (loss[17::100] == 0).all()
    if scale == 1:
        expected_loss, expected_grad, _ = reference.cross_entropy(x[there], y[there], **options)
        assert reference.ulp_error(loss[there], expected_loss, dtype) <= LOSS_ULP[dtype]
        assert reference.ulp_error(grad[there], expected_grad, dtype) <= GRAD_ULP[dtype]


@dtypes
@pytest.mark.parametrize("n_classes", [1100, 2049, 4500])
def test_a_term_that_is_not_0_has_its_bits(n_classes, dtype, isa):
    """Terms near the smallest, a block before the maximum, with a factor that shows them."""
    middle, far = (60, 160) if dtype == np.float32 else (500, 910)
    gaps = np.arange(far - 50, far, 0.37)
    x = np.full((len(gaps), n_classes), -6000, dtype)
    x[:, -1], x[:, 7] = 0, -middle
    x[:, 3] = -gaps
    y = np.full(len(gaps), n_classes - 1)
    up = np.full(len(gaps), 1e30 if dtype == np.float32 else 1e200)
    _, grad = fastce.cross_entropy_with_grad(x, y, reduction="none", upstream=up)
    expected = np.exp(x[:, 3].astype(np.longdouble)) * np.longdouble(up[0])
    some = grad[:, 3] != 0
    assert not some.all()
    assert some.any()
    assert reference.ulp_error(grad[some, 3], expected[some], dtype) <= GRAD_ULP[dtype]


@cache
def many_confident_rows(n_rows, n_classes, dtype):
    rng = np.random.default_rng([n_rows, n_classes])
    x = (10 * rng.normal(size=(n_rows, n_classes))).astype(dtype)
    y = x.argmax(1)
    return x, y, *reference.cross_entropy(x, y, reduction="none")[:2]


# Terms are relative to powers of two that many maxima share, to which these are near and far.
MAXIMA = [0, 1e4, -11, -12, 33, 34, -300, 300, -500, -513, 500, 513, -1e4, -np.inf, 3, -55, 77, 266]


@cache
def rows_of_many_magnitudes(n_classes, dtype):
    """Each maximum with others near it, and at the end of a row that climbs to it from far."""
    rng = np.random.default_rng(n_classes)
    top = np.array(MAXIMA)[:, None]
    near = top + 3 * rng.normal(size=(len(top), n_classes))
    far = top - np.where(top > -np.inf, np.abs(top), 0) * np.linspace(1, 0, n_classes)
    x = np.concatenate([near, far])[rng.permutation(2 * len(top))].astype(dtype)
    return x, rng.integers(0, n_classes, len(x))


@dtypes
@pytest.mark.parametrize("weight", [1, 500, 1e-30])
@pytest.mark.parametrize("n_classes", [10, 113, 1000, 4500])
def test_neighbours_of_any_magnitude_leave_a_row_as_it_is(n_classes, weight, dtype, isa):
    x, y = rows_of_many_magnitudes(n_classes, dtype)
    options = {"sample_weight": np.full(len(x), weight), "reduction": "none"}
    expected_loss, expected_grad, _ = reference.cross_entropy(x, y, **options)
    loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype]
    assert fastce.cross_entropy(x, y, **options).tobytes() == loss.tobytes()
    rising = np.argsort(x.max(1))
    again, again_grad = fastce.cross_entropy_with_grad(x[rising], y[rising], **options)
    assert (again.tobytes(), again_grad.tobytes()) == (
        loss[rising].tobytes(),
        grad[rising].tobytes(),
    )
    for i in range(len(x)):
        own = {**options, "sample_weight": [weight]}
        own_loss, own_grad = fastce.cross_entropy_with_grad(x[i : i + 1], y[i : i + 1], **own)
        assert (own_loss.tobytes(), own_grad.tobytes()) == (loss[i].tobytes(), grad[i].tobytes())


@dtypes
@pytest.mark.parametrize("n_classes", [2, 3, 10, 120])
@pytest.mark.parametrize("factor", [1e-300, 1e-200, 1e-45, 1e20, 1e70, 1e300])
def test_factors_of_any_size_leave_a_gradient_its_bits(factor, n_classes, dtype, isa):
    """What a row is multiplied by may be far above or below the terms, which are lifted themselves,
    and may bring back what would have been subnormal without it."""
    tops = np.array([-400, -60, 0, 1, 30, 260, 400])
    gaps = np.array([0, 5, 30, 80, 300, 700, 715, 740, 750, 790])
    x = np.zeros((tops.size * gaps.size, n_classes), dtype)
    x += np.repeat(tops, gaps.size)[:, None]
    x[:, 1:] -= np.tile(gaps, tops.size)[:, None]
    y = np.arange(len(x)) % 2
    soft = np.eye(n_classes, dtype=dtype)[y]
    rows, classes = np.full(len(x), factor), np.full(n_classes, factor)
    for options in (
        {"targets": y, "upstream": factor},
        {"targets": y, "sample_weight": rows},
        {"targets": y, "class_weight": classes},
        {"targets": y, "class_weight": classes, "upstream": 1 / factor},
        {"targets": y, "upstream": factor, "z_loss": 1e-4 if factor < 1 else 0},
        {"targets": y, "upstream": factor, "loss": "focal_loss", "gamma": 0},
        {"targets": soft, "upstream": min(factor, float(np.finfo(dtype).max))},
    ):
        loss = options.pop("loss", "cross_entropy")
        _, expected, *_ = getattr(reference, loss)(x, reduction="sum", **options)
        _, grad = getattr(fastce, f"{loss}_with_grad")(x, reduction="sum", **options)
        # a term this far below its row's maximum counts as 0, and so does the sum of such terms
        lost = abs(expected) < factor * np.exp(-109.0 if dtype == np.float32 else -796.0)
        error = reference.ulp_error(np.where(lost, 0, grad), np.where(lost, 0, expected), dtype)
        assert error <= GRAD_ULP[dtype] * (2 if "z_loss" in options else 1), options


@dtypes
@pytest.mark.parametrize("n_classes", [2, 3, 10, 120])
@pytest.mark.parametrize("weight", [1e-298, 2.0**-970, 1e250])
def test_a_class_weight_of_any_size_leaves_a_robust_loss_its_gradient(
    weight, n_classes, dtype, isa
):
    x = np.zeros((3, n_classes), dtype)
    x[:, 0] = [-60, -5, 30]
    for name, options in (
        ("generalized_cross_entropy", {"q": 1.0}),
        ("symmetric_cross_entropy", {"alpha": 0.0}),
        ("focal_loss", {"gamma": 2.0}),
    ):
        loss_of = getattr(fastce, f"{name}_with_grad")
        _, plain = loss_of(x, [0, 0, 0], **options)
        _, grad = loss_of(x, [0, 0, 0], class_weight=np.full(n_classes, weight), **options)
        np.testing.assert_allclose(grad, plain, rtol=4 * np.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("n_classes", [2, 3, 10, 120])
@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy",
        "focal_loss",
        "generalized_cross_entropy",
        "symmetric_cross_entropy",
        "poly1_loss",
    ],
)
def test_an_infinite_factor_makes_infinite_gradients(name, n_classes, dtype, isa):
    x = np.linspace(0, 2, 9 * n_classes, dtype=dtype).reshape(9, n_classes)
    y = np.arange(9) % n_classes
    expected = np.full(x.shape, np.inf)
    expected[np.arange(9), y] = -np.inf
    options = {"reduction": "none", "upstream": np.inf}
    _, grad = getattr(fastce, f"{name}_with_grad")(x, y, **options)
    np.testing.assert_array_equal(grad, expected)
    if name == "cross_entropy":
        _, _, hess = fastce.cross_entropy_with_grad_hess(x, y, **options)
        np.testing.assert_array_equal(hess, np.inf)


@dtypes
@pytest.mark.parametrize("offset", [-1875, -434, -125, 0, 125, 250, 1347.6, 1349, 2000])
def test_terms_before_a_late_maximum_are_kept(offset, dtype, isa):
    """What came blocks before is brought down by more than a double's range, but still is in it."""
    gaps = [20, 60, 80] if dtype == np.float32 else [60, 300, 360, 400, 460, 510, 600, 660, 707]
    x = np.full((len(gaps), 2100), offset - 900, dtype)
    x[:, 0], x[:, -1] = offset, np.add(offset, gaps)
    options = {"targets": [2099] * len(gaps), "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(x, **options)
    expected_loss, expected_grad, _ = reference.cross_entropy(x, **options)
    assert reference.ulp_error(loss, expected_loss, dtype) <= reference.LOSS_ULP[dtype]
    assert (
        reference.ulp_error(grad[:, [0, -1]], expected_grad[:, [0, -1]], dtype)
        <= (reference.GRAD_ULP[dtype])
    )


@dtypes
@pytest.mark.parametrize("top", [-470, 266, 2047.6, 2049, 2720])
def test_a_sum_before_a_late_maximum_is_kept(top, dtype, isa):
    """Of so many terms that it is a normal number, where each of them is not."""
    gaps = [90, 100, 105] if dtype == np.float32 else [705, 714, 719.5]
    x = np.repeat(np.subtract(top, gaps)[:, None], 400_001, 1).astype(dtype)
    x[:, -1] = top
    options = {"targets": [400_000] * len(gaps), "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(x, **options)
    expected_loss, expected_grad, _ = reference.cross_entropy(x, **options)
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad[:, -1], expected_grad[:, -1], dtype) <= GRAD_ULP[dtype]


@dtypes
@pytest.mark.parametrize(
    "shape",
    [(200_000, 2), (200_000, 3), (40_000, 10), (20_000, 65), (20_000, 113), (1000, 1025)],
    ids=str,
)
def test_many_confident_rows_are_within_the_contract(shape, dtype, isa):
    """One row in 30,000 is worse than the rows above: where the roundings of exp, of the sum and
    of the result all go one way.  A sum that rounds once more in the logits' dtype shows here."""
    x, y, expected_loss, expected_grad = many_confident_rows(*shape, dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype]


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n_rows", [67, 5000])
def test_reductions_are_within_the_contract(n_rows, reduction, dtype, isa, rng):
    """Losses of very different size, and their weights, add up without drifting."""
    for _ in range(24 if n_rows < 100 else 2):
        x = (rng.normal(size=(n_rows, 10)) * rng.uniform(0, 30, (n_rows, 1))).astype(dtype)
        y = np.where(np.arange(n_rows) % 7, x.argmax(1), 3)
        options = {"sample_weight": rng.uniform(size=n_rows), "class_weight": rng.uniform(size=10)}
        for chosen in ({}, options):
            loss, grad, _ = reference.cross_entropy(x, y, reduction=reduction, **chosen)
            actual = fastce.cross_entropy_with_grad(x, y, reduction=reduction, **chosen)
            assert reference.ulp_error(actual[0], loss, dtype) <= LOSS_ULP[dtype]
            assert reference.ulp_error(actual[1], grad, dtype) <= GRAD_ULP[dtype]


@dtypes
@pytest.mark.parametrize("layout", ["two classes", "long rows"])
def test_exp_is_right_over_its_whole_range(layout, dtype, isa):
    """The gradient away from the label is exp(x) over a known sum: every 1117th float of (0, 104].

    (For float64 as many values up to 746.)  Beyond, exp is zero in that dtype.
    """
    bits, end = (np.int32, 104) if dtype is np.float32 else (np.int64, 746)
    last = int(np.array(end, dtype).view(bits))
    x = -np.arange(1, last, last // 1_000_000, dtype=bits).view(dtype)
    if layout == "two classes":
        x = np.stack([x, np.zeros_like(x)], 1)
    else:
        x = x[: x.size // 999 * 999].reshape(-1, 999)
        x = np.concatenate([np.zeros((len(x), 1), dtype), x], 1)
    y = np.full(len(x), x[0].argmax())
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    e = np.exp(reference.longdouble(x))
    e[np.arange(len(x)), y] = 0
    others = e.sum(1, keepdims=True)
    e[np.arange(len(x)), y] = -others[:, 0]
    assert reference.ulp_error(loss, np.log1p(others)[:, 0], dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, e / (1 + others), dtype) <= GRAD_ULP[dtype]


@dtypes
@pytest.mark.parametrize("n_classes", [50257, 1_000_003])
def test_sums_do_not_drift_with_the_number_of_classes(n_classes, dtype, isa):
    """Among a million equal classes float32 sums would stall: nothing is lost here."""
    rng = np.random.default_rng(n_classes)
    x = np.stack([np.zeros(n_classes), rng.normal(size=n_classes)]).astype(dtype)
    y = np.array([n_classes - 1, 5])
    expected_loss, expected_grad, _ = reference.cross_entropy(x, y, reduction="none")
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
    assert reference.ulp_error(grad, expected_grad, dtype) <= GRAD_ULP[dtype]


# ---------- special values

inf, nan = np.inf, np.nan
# name: a row with the label 1, its loss, its gradient
SPECIAL = {
    "masked class": ([-inf, 0.0, 0.0], np.log(2), [0.0, -0.5, 0.5]),
    "masked label": ([0.0, -inf, 0.0], inf, [0.5, -1.0, 0.5]),
    "label alone": ([-inf, 7.0, -inf], 0.0, [0.0, 0.0, 0.0]),
    "all masked": ([-inf, -inf, -inf], nan, [nan, nan, nan]),
    "NaN label": ([0.0, nan, 1.0], nan, [nan, nan, nan]),
    "NaN elsewhere": ([0.0, 1.0, nan], nan, [nan, nan, nan]),
    "NaN and masked": ([-inf, 1.0, nan], nan, [nan, nan, nan]),
    "NaN first": ([nan, 1.0, 2.0], nan, [nan, nan, nan]),
    "+inf label": ([0.0, inf, 1.0], nan, [nan, nan, nan]),
    "+inf elsewhere": ([inf, 0.0, 1.0], nan, [nan, nan, nan]),
    "+inf and -inf": ([inf, 0.0, -inf], nan, [nan, nan, nan]),
    "+inf and NaN": ([inf, 0.0, nan], nan, [nan, nan, nan]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("n_more", [0, 7, 14, 30, 97, 1022])
def test_special_values_stay_in_their_row(name, n_more, dtype, isa):
    """n_more masked classes lengthen the row; the rows around it keep the bits they have alone."""
    row, loss, grad = SPECIAL[name]
    x = np.random.default_rng(n_more).normal(size=(35, 3 + n_more)).astype(dtype)
    y = np.full(35, 1)
    alone_loss, alone_grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    x[17] = [*row, *[-inf] * n_more]
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    np.testing.assert_allclose(actual_loss[17], loss, rtol=1e-6)
    expected = [*grad, *[nan if np.isnan(loss) else 0.0] * n_more]
    np.testing.assert_allclose(actual_grad[17], expected, rtol=1e-6)
    others = np.arange(35) != 17
    np.testing.assert_array_equal(actual_loss[others], alone_loss[others])
    np.testing.assert_array_equal(actual_grad[others], alone_grad[others])


# name: a row of two classes, its losses for the labels 0 and 1, its gradient at class 0 for them
SPECIAL_PAIRS = {
    "second masked": ([3.0, -inf], [0.0, inf], [0.0, 1.0]),
    "both masked": ([-inf, -inf], [nan, nan], [nan, nan]),
    "NaN": ([nan, 1.0], [nan, nan], [nan, nan]),
    "NaN and masked": ([nan, -inf], [nan, nan], [nan, nan]),
    "+inf": ([inf, 1.0], [nan, nan], [nan, nan]),
    "+inf and masked": ([inf, -inf], [nan, nan], [nan, nan]),
    "+inf twice": ([inf, inf], [nan, nan], [nan, nan]),
    "+inf and NaN": ([inf, nan], [nan, nan], [nan, nan]),
    "equal": ([6e4, 6e4], [np.log(2), np.log(2)], [-0.5, 0.5]),
    "far apart": ([6e4, -6e4], [0.0, 1.2e5], [0.0, 1.0]),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", SPECIAL_PAIRS)
@pytest.mark.parametrize("first", [0, 1])
def test_special_values_of_two_classes(name, first, dtype, isa):
    """The same the other way round; and with a weight of 0 the loss is 0 even where it was +inf."""
    row, losses, grads = SPECIAL_PAIRS[name]
    x = np.random.default_rng(first).normal(size=(70, 2)).astype(dtype)
    y = np.arange(70) % 2
    alone_loss, alone_grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    at = [17, 18, 68, 69]
    x[at] = row if first == 0 else row[::-1]
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    for i in at:
        label = int(y[i] != first)
        np.testing.assert_allclose(loss[i], losses[label], rtol=1e-6)
        np.testing.assert_allclose(grad[i, first], grads[label], rtol=1e-6)
        np.testing.assert_array_equal(grad[i, 1 - first], -grad[i, first])
        free = fastce.cross_entropy(x, y, class_weight=[0, 0], reduction="none")[i]
        np.testing.assert_array_equal(free, nan if np.isnan(losses[label]) else 0.0)
    others = ~np.isin(np.arange(70), at)
    np.testing.assert_array_equal(loss[others], alone_loss[others])
    np.testing.assert_array_equal(grad[others], alone_grad[others])


@dtypes
@pytest.mark.parametrize("n_classes", [2, 3, 10, 33, 1025])
@pytest.mark.parametrize("poison", [nan, inf, -inf])
def test_an_ignored_row_is_never_read(poison, n_classes, dtype, isa, rng):
    """Not by ignore_index, not by a weight of 0: its gradient is 0 and the rest is right."""
    x = rng.normal(size=(40, n_classes)).astype(dtype)
    y = rng.integers(0, n_classes, 40)
    w = rng.uniform(1, 2, 40)
    gone = np.arange(40) % 3 == 1
    expected_loss, expected_grad, _ = reference.cross_entropy(
        x[~gone], y[~gone], sample_weight=w[~gone]
    )
    x[gone] = poison
    for options in (
        {"targets": np.where(gone, -100, y), "sample_weight": w},
        {"targets": y, "sample_weight": np.where(gone, 0, w)},
    ):
        loss, grad = fastce.cross_entropy_with_grad(x, **options)
        assert reference.ulp_error(loss, expected_loss, dtype) <= LOSS_ULP[dtype]
        assert not grad[gone].any()
        assert reference.ulp_error(grad[~gone], expected_grad, dtype) <= GRAD_ULP[dtype]


@dtypes
def test_isas_agree_within_the_contract(dtype, rng):
    """Instruction sets may differ, by no more than both errors together."""
    x = (rng.normal(size=(100, 117)) * 10).astype(dtype)
    y = rng.integers(0, 117, 100)
    results = []
    for name in fastce._kernel.isas():
        previous = fastce._kernel.use_isa(name)
        results.append(fastce.cross_entropy_with_grad(x, y, reduction="none"))
        fastce._kernel.use_isa(previous)
    for loss, grad in results:
        assert reference.ulp_error(loss, results[0][0], dtype) <= 2 * LOSS_ULP[dtype]
        assert reference.ulp_error(grad, results[0][1], dtype) <= 2 * GRAD_ULP[dtype]


@dtypes
@pytest.mark.parametrize("case", [case for case in CASES if "huge" not in case])
def test_scaled_logits_are_within_the_contract_of_their_rounding(case, dtype, isa):
    """z = scale * x is rounded to the logits' dtype; from there on nothing more is lost."""
    for n_classes in (3, 17, 120):
        x, y, _, _ = solved(case, dtype, n_classes)
        z = x * dtype(0.7)
        expected_loss, expected_grad, _ = reference.cross_entropy(z, y, reduction="none")
        loss, grad = fastce.cross_entropy_with_grad(x, y, logit_scale=0.7, reduction="none")
        loss_error = reference.ulp_error(loss, expected_loss, dtype)
        assert loss_error <= LOSS_ULP[dtype], f"{n_classes} classes"
        expected_grad *= dtype(0.7)
        grad_error = reference.ulp_error(grad, expected_grad, dtype)
        assert grad_error <= GRAD_ULP[dtype], f"{n_classes} classes"
