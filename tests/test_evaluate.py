"""evaluate: one pass, many answers, each as the oracle has it."""

import numpy as np
import pytest
import reference

import fastce

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def figures(result):
    """The fields of an Evaluation as the oracle names them."""
    names = ("loss", "accuracy", "top_k_accuracy", "perplexity", "entropy", "ece", "n_valid")
    flat = {name: getattr(result, name) for name in names}
    per_class = result.per_class
    return flat | {
        "count": per_class.count,
        "class_loss": per_class.loss,
        "class_accuracy": per_class.accuracy,
    }


def agree(result, expected):
    """rtol: float32 logits are evaluated within 4 ulp a row, and here added up."""
    actual = figures(result)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            np.float64(actual[name]), np.float64(value), rtol=1e-6, err_msg=name
        )


@dtypes
@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 17, 64, 65, 100, 1025])
def test_all_figures(n_classes, dtype, isa, rng):
    x = (rng.normal(size=(301, n_classes)) * np.linspace(0.1, 8, 301)[:, None]).astype(dtype)
    y = np.where(rng.uniform(size=301) < 0.5, x.argmax(1), rng.integers(0, n_classes, 301))
    y[::9] = -100
    weight = rng.uniform(size=301) * (np.arange(301) % 7 != 2)
    for options in ({}, {"top_k": 1}, {"top_k": 3, "sample_weight": weight}, {"ignore_index": 0}):
        labels = np.maximum(y, 0) if "ignore_index" in options else y
        agree(fastce.evaluate(x, labels, **options), reference.evaluate(x, labels, **options))


@dtypes
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_any_axis(axis, dtype, isa, rng):
    x = rng.normal(size=(6, 7, 8)).astype(dtype)
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    agree(fastce.evaluate(x, y, axis=axis), reference.evaluate(x, y, axis=axis))


@dtypes
def test_masked_classes_and_confident_rows(dtype, isa, rng):
    x = rng.normal(size=(50, 12)).astype(dtype)
    x[:, 3] = -np.inf
    x[::2, 1] += 60
    y = np.where(np.arange(50) % 2, 2, 1)
    agree(fastce.evaluate(x, y), reference.evaluate(x, y))


def test_ties_go_to_the_lower_class():
    """As argmax has it: three equal logits are right for class 0, and among the top two for 1."""
    x = np.zeros((3, 3))
    assert fastce.evaluate(x, [0, 1, 2], top_k=1).accuracy == pytest.approx(1 / 3)
    assert fastce.evaluate(x, [0, 1, 2], top_k=2).top_k_accuracy == pytest.approx(2 / 3)
    assert fastce.evaluate(x, [0, 1, 2], top_k=5).top_k_accuracy == 1


def test_ece_by_hand():
    """Two rows of confidence 0.8, one of them right: |0.5 - 0.8|; a sure and right one: 0."""
    x = np.log([[0.8, 0.2], [0.8, 0.2], [1, 1e-30]])
    result = fastce.evaluate(x, [0, 1, 0])
    assert result.ece == pytest.approx(2 / 3 * 0.3)
    assert result.perplexity == pytest.approx((0.8 * 0.2) ** (-1 / 3))


def test_no_rows():
    result = fastce.evaluate(np.ones((2, 3)), [-100, -100])
    assert result.n_valid == 0
    assert list(result.per_class.count) == [0, 0, 0]
    for name in ("loss", "accuracy", "top_k_accuracy", "perplexity", "entropy", "ece"):
        assert np.isnan(getattr(result, name))
    assert np.isnan(result.per_class.loss).all()


def test_classes_without_rows_have_no_mean():
    result = fastce.evaluate(np.zeros((2, 3)), [1, 1])
    assert list(result.per_class.count) == [0, 2, 0]
    np.testing.assert_array_equal(np.isnan(result.per_class.accuracy), [True, False, True])


def test_same_figures_for_any_number_of_threads(isa, rng):
    x, y = rng.normal(size=(20_000, 10)).astype(np.float32), rng.integers(0, 10, 20_000)
    expected = figures(fastce.evaluate(x, y, n_threads=1))
    for n_threads in (2, 5):
        np.testing.assert_equal(figures(fastce.evaluate(x, y, n_threads=n_threads)), expected)


def test_it_prints_its_figures(rng):
    result = fastce.evaluate(rng.normal(size=(40, 3)), rng.integers(0, 3, 40))
    printed = str(result)
    for value in (result.loss, result.accuracy, result.perplexity, result.entropy, result.ece):
        assert f"{value:.4f}" in printed
    assert "40" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k.*0"),
        ({"top_k": 2.0}, "top_k"),
        ({"axis": 2}, "axis.*2"),
        ({"targets": [0, 3]}, r"targets\[1\] is 3, outside \[0, 3\)"),
        ({"targets": [0]}, r"targets.*\(2,\)"),
        ({"targets": np.full((2, 3), 1 / 3)}, "targets"),
        ({"sample_weight": [1.0]}, r"sample_weight.*\(2,\)"),
        ({"sample_weight": [1.0, -1.0]}, "sample_weight"),
        ({"n_threads": 0}, "n_threads"),
        ({"logits": "ab"}, "logits"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises((TypeError, ValueError), match=message) as info:
        fastce.evaluate(**{"logits": np.zeros((2, 3)), "targets": [0, 1]} | options)
    assert "\n" not in str(info.value)
