"""nll_loss and log_loss: from log-probabilities and probabilities, as the oracle has them."""

import numpy as np
import pytest
import reference
from reference import assert_close

import fastce

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
names = pytest.mark.parametrize("name", ["nll_loss", "log_loss"])


def both(name):
    return getattr(fastce, name), getattr(fastce, name + "_with_grad"), getattr(reference, name)


def predictions(rng, name, shape, axis, dtype):
    p = np.moveaxis(rng.dirichlet(np.ones(shape[axis]), np.delete(shape, axis)), -1, axis)
    return (np.log(p) if name == "nll_loss" else p).astype(dtype)


@names
@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((30, 5), -1), ((9, 130), -1), ((2, 5, 19), 1)], ids=str
)
def test_all_options(shape, axis, reduction, soft, name, dtype, isa, rng):
    rows, n_classes = tuple(np.delete(shape, axis)), shape[axis]
    x = predictions(rng, name, shape, axis, dtype)
    y = rng.integers(0, n_classes, rows)
    y.flat[3] = -100
    targets = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.7) if soft else y
    loss_alone, loss_and_grad, oracle = both(name)
    for options in (
        {},
        {"class_weight": rng.uniform(size=n_classes), "sample_weight": rng.uniform(size=rows)},
        {"where": rng.uniform(size=rows) < 0.7, "upstream": 0.3},
    ):
        options |= {"axis": axis, "reduction": reduction}
        expected = oracle(x, targets, **options)
        loss, grad = loss_and_grad(x, targets, **options)
        assert loss.dtype == grad.dtype == dtype
        assert_close(loss, expected[0], dtype)
        assert_close(grad, expected[1], dtype)
        options.pop("upstream", None)
        np.testing.assert_array_equal(loss_alone(x, targets, **options), loss)


@dtypes
def test_log_loss_neither_clips_nor_renormalises(dtype, isa):
    """Its gradient is -1 / p at the label; a label of probability 0 costs infinity."""
    tiny = float(np.finfo(dtype).tiny)
    p = np.array([[tiny, 1], [0.25, 0.25], [1, 0], [0, 1]], dtype)
    loss, grad = fastce.log_loss_with_grad(p, [0, 0, 0, 0], reduction="none")
    np.testing.assert_allclose(loss, [-np.log(tiny), np.log(4), 0, np.inf], rtol=1e-6)
    with np.errstate(over="ignore", divide="ignore"):
        np.testing.assert_allclose(grad[:, 0], -1 / p[:, 0], rtol=1e-6)
    assert not grad[:, 1].any()


@names
def test_only_the_label_is_read(name, isa):
    x = np.array([[np.nan, 0.5, np.inf], [0.5, np.nan, -1]], np.float32)
    loss, grad = both(name)[1](x, [1, 0])
    expected = -0.5 if name == "nll_loss" else np.log(2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert np.isfinite(grad).all()


@dtypes
def test_nll_of_log_softmax_is_cross_entropy(dtype, rng):
    x, y = (5 * rng.normal(size=(30, 7))).astype(dtype), rng.integers(0, 7, 30)
    loss = fastce.nll_loss(fastce.log_softmax(x), y)
    assert_close(loss, fastce.cross_entropy(x, y), dtype)


@names
def test_in_place(name, rng):
    x = predictions(rng, name, (9, 5), 1, np.float32)
    loss, grad = both(name)[1](x, [0] * 9)
    inplace_loss, inplace = both(name)[1](x, [0] * 9, out=x)
    assert inplace is x
    assert inplace_loss == loss
    np.testing.assert_array_equal(x, grad)


@names
def test_bad_arguments(name):
    x, out = np.full((2, 3), 0.5), np.full((2, 3), 7.0)
    for options, message in (
        ({"targets": [0, 3]}, r"targets\[1\] is 3, outside \[0, 3\)"),
        ({"targets": [0]}, r"targets.*\(2,\)"),
        ({"class_weight": [1.0]}, "class_weight"),
        ({"reduction": "avg"}, "reduction"),
        ({"axis": 2}, "axis"),
        ({"n_threads": 0}, "n_threads"),
    ):
        with pytest.raises(ValueError, match=message):
            both(name)[1](x, **{"targets": [0, 1], "out": out, **options})
        assert (out == 7).all()
