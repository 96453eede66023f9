"""softmax, log_softmax and logsumexp, to the contract's ulps."""

import numpy as np
import pytest
import reference
from reference import GRAD_ULP, LOSS_ULP

import fastce

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
maps = pytest.mark.parametrize("name", ["softmax", "log_softmax"])
inf, nan = np.inf, np.nan


def error_of_logsumexp(actual, x, axis, dtype):
    """In units of the larger of the result and the maximum, which cancel where that is near 0."""
    expected = reference.logsumexp(x, axis)
    size = np.maximum(abs(expected), abs(x.max(axis))).astype(dtype)
    with np.errstate(invalid="ignore"):  # of -inf and -inf
        error = abs(actual - expected) / np.spacing(size)
    return float(np.where(actual == expected, 0, error).max(initial=0))


@dtypes
@pytest.mark.parametrize("n_classes", [1, 2, 3, 9, 16, 17, 64, 100, 112, 113, 1025, 50_257])
def test_every_size(n_classes, dtype, isa, rng):
    """log_softmax is as exact at the top class as the loss."""
    n_rows = 37 if n_classes < 2000 else 3
    x = rng.normal(size=(n_rows, n_classes)) * np.linspace(0.1, 40, n_rows)[:, None]
    x[::4] += 1e4
    x[1::4, : n_classes // 3] = -inf
    x[2] = -inf
    x = x.astype(dtype)
    p, log_p, lse = fastce.softmax(x), fastce.log_softmax(x), fastce.logsumexp(x)
    assert p.dtype == log_p.dtype == lse.dtype == dtype
    assert p.shape == log_p.shape == x.shape
    assert lse.shape == (n_rows,)
    assert reference.ulp_error(p, reference.softmax(x), dtype) <= GRAD_ULP[dtype]
    assert reference.ulp_error(log_p, reference.log_softmax(x), dtype) <= LOSS_ULP[dtype]
    assert error_of_logsumexp(lse, x, 1, dtype) <= LOSS_ULP[dtype]


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("shape", [(5, 7, 9), (2, 120, 33)], ids=str)
def test_any_axis_has_the_bits_of_the_last(shape, axis, dtype, isa, rng):
    x = (5 * rng.normal(size=shape)).astype(dtype)
    last = np.moveaxis(x, axis, -1).copy()
    for primitive in (fastce.softmax, fastce.log_softmax):
        actual = np.moveaxis(primitive(x, axis=axis), axis, -1)
        np.testing.assert_array_equal(actual, primitive(last))
    np.testing.assert_array_equal(fastce.logsumexp(x, axis=axis), fastce.logsumexp(last))


@dtypes
@maps
def test_out(name, dtype, isa, rng):
    primitive = getattr(fastce, name)
    x = rng.normal(size=(17, 9)).astype(dtype)
    expected = primitive(x)
    loose = np.full((34, 18), 7, dtype)
    for out in (np.empty_like(x), np.empty((9, 17), dtype).T, loose[::2, ::-2]):
        assert primitive(x, out=out) is out
        np.testing.assert_array_equal(out, expected)
    assert (loose[1::2] == 7).all()
    assert primitive(x, out=x) is x
    np.testing.assert_array_equal(x, expected)


@dtypes
def test_special_values(dtype, isa):
    """As scipy.special: of nothing but -inf -inf, and NaN for the other two; NaN poisons."""
    x = np.array([[-inf, -inf], [0, nan], [-inf, 1], [0, inf], [inf, inf]], dtype)
    lost = [nan, nan]
    np.testing.assert_array_equal(fastce.logsumexp(x), [-inf, nan, 1, inf, inf])
    np.testing.assert_array_equal(fastce.softmax(x), [lost, lost, [0, 1], lost, lost])
    np.testing.assert_array_equal(fastce.log_softmax(x), [lost, lost, [-inf, 0], lost, lost])


@dtypes
@maps
def test_same_bits_for_any_number_of_threads(name, dtype, isa, rng):
    primitive = getattr(fastce, name)
    for shape in [(10_000, 9), (300, 1000)]:
        x = rng.normal(size=shape).astype(dtype)
        expected = primitive(x, n_threads=1)
        for n_threads in (2, 5):
            np.testing.assert_array_equal(primitive(x, n_threads=n_threads), expected)


def test_one_row_and_no_rows():
    np.testing.assert_allclose(fastce.softmax([1, 1]), [0.5, 0.5])
    np.testing.assert_allclose(fastce.log_softmax([1, 1]), [-np.log(2)] * 2)
    np.testing.assert_allclose(fastce.logsumexp([1, 1]), 1 + np.log(2))
    assert fastce.softmax(np.zeros((0, 3))).shape == (0, 3)
    assert fastce.logsumexp(np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_bad_arguments(name):
    primitive = getattr(fastce, name)
    for arguments, options, message in (
        (["abc"], {}, "logits"),
        ([3.0], {}, "logits"),
        ([np.zeros((3, 0))], {}, "logits"),
        ([np.zeros((2, 3))], {"axis": 2}, "axis.*2"),
        ([np.zeros((2, 3))], {"axis": None}, "axis"),
        ([np.zeros((2, 3))], {"axis": 1.0}, "axis"),
        ([np.zeros((2, 3))], {"n_threads": 0}, "n_threads"),
        ([np.zeros((2, 3))], {"out": np.zeros((3, 2))}, "out"),
        ([np.zeros((2, 3))], {"out": np.zeros((2, 3), int)}, "out"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            primitive(*arguments, **options)


def test_logsumexp_says_what_is_wrong_with_out():
    read_only = np.zeros(2)
    read_only.flags.writeable = False
    for out, message in (
        ([0, 0], "out.*list"),
        (np.zeros(2, int), "out must be float32 or float64, got .*int64"),
        (np.zeros(3), r"out.*\(2,\).*\(3,\)"),
        (read_only, "out.*read-only"),
        (np.lib.stride_tricks.as_strided(np.zeros(1), (2,), (0,)), "out must not repeat"),
        (np.ma.array([0.0, 0.0], mask=[True, False]), "out.*masked"),
        (np.zeros(17, np.uint8)[1:].view(float), "out.*unaligned"),
        (np.zeros(2, np.float16), "out must be float32 or float64, got .*float16"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fastce.logsumexp(np.zeros((2, 3)), out=out)
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="out must share no memory with logits"):
        fastce.logsumexp(x, out=x[:, 0])
    assert not x.any()


def test_logsumexp_beyond_out_warns_of_nothing():
    with np.errstate(all="raise"):
        assert fastce.logsumexp(np.full((1, 3), 1e300), out=np.zeros(1, np.float32))[0] == inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [1, 2, 10, 112, 113, 3000])
def test_the_softmax_of_one_class_that_is_seen_is_one(n_classes, dtype, isa, rng):
    x = np.full((200, n_classes), -inf, dtype)
    seen = np.arange(200), rng.integers(0, n_classes, 200)
    x[seen] = rng.normal(size=200) * 30
    expected = np.zeros_like(x)
    expected[seen] = 1
    np.testing.assert_array_equal(fastce.softmax(x), expected)
