"""evaluate: every figure against an oracle in NumPy: ties, weights, masks, classes without rows."""

import re

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastce

inf, nan = np.inf, np.nan
# Means of rows that are right to 2 ulp of their float32 terms; what is printed needs less.
RTOL = 1e-6


@np.errstate(all="ignore")
def oracle(logits, targets, *, axis=-1, top_k=5, sample_weight=None, ignore_index=-100):
    """The figures of `fastce.evaluate`, row by row; a rank is the place in a stable sort."""
    x = np.moveaxis(np.asarray(logits, np.float64), axis, -1)
    n_classes = x.shape[-1]
    x, y = x.reshape(-1, n_classes), np.asarray(targets).reshape(-1)
    w = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight).reshape(-1)
    there = (y != ignore_index if ignore_index is not None else True) & (w > 0)
    x, y, w = x[there], y[there].astype(int), w[there]

    p, log_p = reference.softmax(x), reference.log_softmax(x)
    loss = -np.take_along_axis(log_p, y[:, None], 1)[:, 0]
    entropy = -np.where(p == 0, 0, p * log_p).sum(1)
    confidence = p.max(1).astype(np.float64)  # 1/3 is 5/15 when both are rounded
    order = np.argsort(-x, axis=1, kind="stable")
    rank = (order == y[:, None]).argmax(1)
    right = rank == 0

    def mean(values):
        return float((w * values).sum() / w.sum()) if len(y) else nan

    ece = 0.0 if len(y) else nan
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        ece += abs((w * (right - confidence))[inside].sum()) / w.sum()
    of_class = [y == c for c in range(n_classes)]
    return {
        "loss": mean(loss),
        "accuracy": mean(right),
        "top_k_accuracy": mean(rank < top_k),
        "perplexity": np.exp(mean(loss)),
        "entropy": mean(entropy),
        "ece": float(ece),
        "n_valid": len(y),
        "count": np.array([c.sum() for c in of_class]),
        "class_loss": np.array([(w * loss)[c].sum() / w[c].sum() for c in of_class], float),
        "class_accuracy": np.array([(w * right)[c].sum() / w[c].sum() for c in of_class], float),
    }


def figures(result):
    per_class = result.per_class
    return {
        **{k: v for k, v in vars(result).items() if k not in ("per_class", "top_k")},
        "count": per_class.count,
        "class_loss": per_class.loss,
        "class_accuracy": per_class.accuracy,
    }


def check(logits, targets, **options):
    expected = oracle(logits, targets, **options)
    result = fastce.evaluate(logits, targets, **options)
    actual = figures(result)
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=RTOL, atol=1e-9, err_msg=name, strict=True
        )
    return result


def batch(rng, n_rows, n_classes, dtype):
    x = (2 * rng.normal(size=(n_rows, n_classes))).astype(dtype)
    y = rng.integers(0, n_classes, n_rows)
    y[::2] = x.argmax(1)[::2]
    return x, y


# ---------- the figures


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 17, 65, 112, 113, 1025])
def test_every_figure(n_classes, dtype, isa, rng):
    x, y = batch(rng, 203 if n_classes <= 113 else 37, n_classes, dtype)
    w = rng.uniform(0.1, 3, len(y))
    check(x, y)
    check(x, y, top_k=2, sample_weight=w)
    check(x, np.where(np.arange(len(y)) % 5, y, -100), sample_weight=np.where(w < 1, 0, w))
    check(x, y, top_k=n_classes + 3, ignore_index=0)
    check(x, y, ignore_index=None)


def test_bfloat16(isa, rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for n_classes in (10, 120):
        check(*batch(rng, 203, n_classes, ml_dtypes.bfloat16))


def test_threads_and_layouts_have_the_same_bits(isa, rng):
    for n_rows, n_classes in ((5003, 10), (301, 1000)):
        x, y = batch(rng, n_rows, n_classes, np.float32)
        expected = figures(fastce.evaluate(x, y, n_threads=1))
        views = (x, np.asfortranarray(x), np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1])
        for view, n_threads in zip(views, (2, 3, 8), strict=True):
            actual = figures(fastce.evaluate(view, y, n_threads=n_threads))
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@pytest.mark.parametrize("shape", [(4, 3, 5), (2, 70, 3, 4)], ids=str)
def test_images(shape, isa, rng):
    x = rng.normal(size=shape).astype(np.float32)
    y = rng.integers(0, shape[1], np.delete(shape, 1))
    w = rng.uniform(size=y.shape)
    check(x, y, axis=1, sample_weight=w)
    check(np.moveaxis(x, 1, -1), y, sample_weight=w)
    check(x.T, y.T, axis=-2)
    check(np.ascontiguousarray(np.moveaxis(x, 1, 0)), y, axis=0)


def test_one_row():
    result = check(np.array([0.5, 2.0, 1.0]), np.array(2), top_k=2)
    assert (result.accuracy, result.top_k_accuracy, result.n_valid) == (0.0, 1.0, 1)


def test_converted_arguments():
    check([[1, 0], [0, 3]], [0, 0])
    check([[1.0, 0.0], [0.0, 3.0]], np.array([True, False]))
    check(np.eye(3, dtype=np.float32), np.array([0, 1, 1], np.uint8))


def test_figures_are_plain_numbers(rng):
    result = fastce.evaluate(*batch(rng, 20, 5, np.float32))
    for name in ("loss", "accuracy", "top_k_accuracy", "perplexity", "entropy", "ece"):
        assert type(getattr(result, name)) is float, name
    assert type(result.n_valid) is int
    assert result.per_class.count.dtype.kind == "i"
    assert result.per_class.loss.dtype == result.per_class.accuracy.dtype == np.float64


# ---------- ties and ranks


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.integers(1, 70)),
        elements=st.sampled_from([-inf, -1.0, -0.0, 0.0, 1.0]),
    ).filter(lambda x: (x > -inf).any(1).all()),
    st.integers(1, 8),
    st.data(),
)
def test_of_ties_the_lower_class_comes_first(x, top_k, data):
    y = data.draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, x.shape[1] - 1)))
    result = fastce.evaluate(x, y, top_k=top_k)
    assert result.accuracy == pytest.approx((x.argmax(1) == y).mean())
    best = np.argsort(-x, axis=1, kind="stable")[:, :top_k]
    assert result.top_k_accuracy == pytest.approx((best == y[:, None]).any(1).mean())


@pytest.mark.parametrize("n_classes", [5, 120])
def test_every_rank_of_equal_logits(n_classes, isa):
    """Nothing but a tie: the target's rank is the target."""
    x = np.full((n_classes, n_classes), 3.3, np.float32)
    for top_k in (1, 2, n_classes - 1, n_classes):
        result = fastce.evaluate(x, np.arange(n_classes), top_k=top_k)
        assert result.top_k_accuracy == pytest.approx(top_k / n_classes)
        assert result.entropy == pytest.approx(np.log(n_classes))


# ---------- calibration


def test_a_bin_holds_its_upper_edge_alone(isa):
    """A confidence of exactly 1/3 is in (4/15, 5/15], one that is a little larger in the next.

    The first row is right and the second wrong; in one bin their errors would cancel.
    """
    x = np.array([[0, 0, 0], [1e-3, 0, 0]], np.float64)
    result = check(x, [0, 1])
    assert result.ece == pytest.approx((1 - 1 / 3 + 1 / 3) / 2, rel=1e-2)
    x = np.array([[0, 0, 0], [-2e-3, 0, -2e-3]], np.float64)  # 1/3 again, and 0.3338
    assert fastce.evaluate(x, [0, 0]).ece == pytest.approx(0.5, rel=1e-2)


def test_a_certain_row_is_in_the_last_bin(isa):
    for n_classes in (3, 120):
        x = np.zeros((2, n_classes), np.float32)
        x[:, 1] = 200
        assert fastce.evaluate(x, [1, 1]).ece == pytest.approx(0, abs=1e-12)
        assert fastce.evaluate(x, [1, 0]).ece == pytest.approx(0.5)
        assert fastce.evaluate(x, [0, 0]).ece == pytest.approx(1)


def test_a_weight_is_as_many_rows(isa, rng):
    x, y = batch(rng, 40, 6, np.float32)
    w = rng.integers(0, 4, 40)
    expected = figures(fastce.evaluate(np.repeat(x, w, 0), np.repeat(y, w)))
    actual = figures(fastce.evaluate(x, y, sample_weight=w))
    del expected["n_valid"], expected["count"]
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-12, err_msg=name)
    assert actual["n_valid"] == (w > 0).sum()


# ---------- special values, and nothing


@pytest.mark.parametrize("n_classes", [4, 120])
def test_masked_classes(n_classes, isa, rng):
    """-inf is a class of probability 0: 0 * log 0 is 0 in the entropy."""
    x, y = batch(rng, 60, n_classes, np.float32)
    x[rng.uniform(size=x.shape) < 0.4] = -inf
    x[np.arange(60), y] = 1
    x[0], y[0] = -inf, 2
    x[0, 2] = 5  # alone
    assert np.isfinite(check(x, y).entropy)
    x[0, 2], x[0, 1] = -inf, 0  # a target that cannot be
    result = check(x, y)
    assert result.loss == result.perplexity == inf
    assert np.isfinite(result.entropy)
    assert result.per_class.loss[2] == inf
    assert np.isfinite(result.per_class.loss[np.unique(y[y != 2])]).all()


@pytest.mark.parametrize("n_classes", [4, 120])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_poisoned_row(at, n_classes, isa, rng):
    """Its NaN shows in every mean of real numbers, and it is right for nobody."""
    x, y = np.zeros((3, n_classes), np.float32), np.array([1, 2, 3])
    x[np.arange(3), y] = 3.0
    x[0, at] = nan
    result = fastce.evaluate(x, y, top_k=2)
    for name in ("loss", "perplexity", "entropy", "ece"):
        assert np.isnan(getattr(result, name)), name
    np.testing.assert_array_equal(np.isnan(result.per_class.loss[:4]), [1, 1, 0, 0])
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.top_k_accuracy == pytest.approx(2 / 3)
    np.testing.assert_array_equal(result.per_class.accuracy[:4], [nan, 0, 1, 1])


def test_a_model_that_is_nan_is_not_accurate(isa):
    for n_classes in (10, 120):
        x = np.full((20, n_classes), nan, np.float32)
        assert fastce.evaluate(x, np.arange(20) % 10, top_k=3).accuracy == 0
        assert fastce.evaluate(x, np.arange(20) % 10, top_k=3).top_k_accuracy == 0


@pytest.mark.parametrize("poison", [nan, inf, -inf])
def test_a_row_that_is_not_there_is_never_read(poison, isa, rng):
    for n_classes in (5, 120):
        x, y = batch(rng, 40, n_classes, np.float32)
        gone = np.arange(40) % 3 == 1
        expected = figures(fastce.evaluate(x[~gone], y[~gone]))
        x[gone] = poison
        for options in (
            {"targets": np.where(gone, -100, y)},
            {"targets": np.where(gone, 255, y), "ignore_index": 255},
            {"targets": y, "sample_weight": np.where(gone, 0, 1)},
        ):
            actual = figures(fastce.evaluate(x, **options))
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def test_of_nothing():
    for result in (
        fastce.evaluate(np.zeros((0, 3), np.float32), np.zeros(0, int)),
        fastce.evaluate(np.ones((2, 3)), [-100, -100]),
        fastce.evaluate(np.ones((2, 3)), [0, 1], sample_weight=[0, 0]),
    ):
        assert result.n_valid == 0
        for name in ("loss", "accuracy", "top_k_accuracy", "perplexity", "entropy", "ece"):
            assert np.isnan(getattr(result, name)), name
        np.testing.assert_array_equal(result.per_class.count, [0, 0, 0])
        assert np.isnan(result.per_class.loss).all()
        assert np.isnan(result.per_class.accuracy).all()
        assert "nan" in str(result)


# ---------- errors

x23 = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "top_k must be .* got 0", {"top_k": 0}),
        (ValueError, "top_k must be .* got -1", {"top_k": -1}),
        (TypeError, "top_k must be an int", {"top_k": 1.0}),
        (TypeError, "top_k must be an int", {"top_k": True}),
        (TypeError, "targets must be integers", {"targets": [0.0, 1.0]}),
        (TypeError, "targets must be integers", {"targets": np.full((2, 3), 1 / 3)}),
        (ValueError, r"targets\[1\] is 3, outside \[0, 3\)", {"targets": [0, 3]}),
        (ValueError, r"targets\[0\] is -1", {"targets": [-1, 0]}),
        (ValueError, r"targets must have shape \(2,\)", {"targets": [0]}),
        (ValueError, r"targets must have shape \(2,\)", {"targets": [[0], [1]]}),
        (ValueError, r"sample_weight must have shape \(2,\)", {"sample_weight": [1.0]}),
        (ValueError, r"sample_weight\[1\] is -1", {"sample_weight": [1.0, -1.0]}),
        (ValueError, r"sample_weight\[0\] is nan", {"sample_weight": [nan, 1.0]}),
        (ValueError, "axis is 2", {"axis": 2}),
        (ValueError, "n_threads", {"n_threads": 0}),
        (TypeError, "logits must be", {"logits": [["a", "b"], ["c", "d"]]}),
        (ValueError, "at least one class", {"logits": np.zeros((2, 0))}),
        (TypeError, "ignore_index", {"ignore_index": 1.5}),
    ],
    ids=str,
)
def test_errors_name_the_argument(error, message, arguments):
    with pytest.raises(error, match=message) as caught:
        fastce.evaluate(**{"logits": x23, "targets": [0, 1], **arguments})
    assert len(str(caught.value).splitlines()) == 1


# ---------- what print shows


def test_it_prints_what_one_wants_to_read():
    result = fastce.evaluate([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], [0, 1, 1], top_k=1)
    lines = str(result).splitlines()
    for words in (
        r"rows +3", r"loss +1\.1629", r"accuracy +0\.6667", r"top-1 accuracy +0\.6667",
        r"perplexity +3\.1993", r"entropy +0\.\d{4}", r"ECE +0\.\d{4}",
        r"class +count +loss +accuracy", r" +0 +1 +0\.1269 +1\.0000", r" +1 +2 +1\.6809 +0\.5000",
    ):  # fmt: skip
        assert any(re.fullmatch(words, line) for line in lines), words
    assert all(len(line) < 80 for line in lines)


def test_the_callers_error_state_is_not_ours(rng):
    """Weights times figures that are too small for a double."""
    x, y = rng.normal(size=(8, 5)) * 1e3, np.zeros(8, int)
    expected = fastce.evaluate(x, y, sample_weight=np.full(8, 1e-290))
    with np.errstate(all="raise"):
        assert str(fastce.evaluate(x, y, sample_weight=np.full(8, 1e-290))) == str(expected)


def test_it_prints_no_endless_table():
    many = fastce.evaluate(np.zeros((1, 5000), np.float32), [3])
    assert len(str(many).splitlines()) < 10


@pytest.mark.parametrize("top_k", [1, 3, 4, 100])
def test_a_spoiled_row_is_not_among_more_than_all(top_k):
    x = np.zeros((2, 3))
    x[0, 0], x[1, 0] = np.nan, 1
    assert fastce.evaluate(x, [0, 0], top_k=top_k).top_k_accuracy == 0.5


def test_evaluations_are_objects_and_large_losses_warn_of_nothing():
    x = np.array([[1e308, 0]] * 2)
    result = fastce.evaluate(x, [1, 1], top_k=1)
    assert result.loss == np.inf
    assert {result} == {result} != {fastce.evaluate(x, [1, 1])}
    with pytest.raises(ValueError, match="sample_weight must have a finite sum"):
        fastce.evaluate(np.zeros((4, 2)), [0] * 4, sample_weight=[1e308] * 4)
