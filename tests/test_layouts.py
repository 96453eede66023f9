"""Any layout of any argument gives the bits of the contiguous one, without copying the logits."""

import tracemalloc

import numpy as np
import pytest

import fastce


def padded(a):
    b = np.full([n + 8 for n in a.shape], 7, a.dtype)
    inner = b[tuple(slice(3, n + 3) for n in a.shape)]
    inner[...] = a
    return inner


def spread(a, step):
    b = np.full([n * abs(step) for n in a.shape], 7, a.dtype)
    b[(slice(None, None, step),) * a.ndim] = a
    return b[(slice(None, None, step),) * a.ndim]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    b = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.T.copy().T,
    "reversed": lambda a: spread(a, -1),
    "every second": lambda a: spread(a, 2),
    "every third, reversed": lambda a: spread(a, -3),
    "inside a larger array": padded,
    "read-only": read_only,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "unaligned": unaligned,
    "list": lambda a: a.tolist(),
}

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
shapes = pytest.mark.parametrize("shape", [(17, 3), (33, 10), (20, 33), (5, 1025)], ids=str)


@pytest.fixture
def case(shape, dtype, rng):
    return {
        "logits": rng.normal(size=shape).astype(dtype),
        "targets": rng.integers(0, shape[1], shape[0]),
        "class_weight": rng.uniform(size=shape[1]),
        "sample_weight": rng.uniform(size=shape[0]),
    }


@dtypes
@shapes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["logits", "targets", "class_weight", "sample_weight"])
def test_any_layout_has_the_bits_of_the_contiguous_one(name, layout, case, isa):
    if name == "logits" and layout == "list" and case["logits"].dtype == np.float32:
        case["logits"] = case["logits"].astype(np.float64)  # which a list becomes
    loss, grad = fastce.cross_entropy_with_grad(**case)
    case[name] = LAYOUTS[layout](case[name])
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(**case)
    assert actual_loss == loss
    assert fastce.cross_entropy(**case) == loss
    np.testing.assert_array_equal(actual_grad, grad)
    assert actual_grad.dtype == grad.dtype


@dtypes
@shapes
def test_broadcast_logits(case, isa):
    """Strides of 0: one row for all, or one logit for a whole row."""
    x = case["logits"]
    for view in (np.broadcast_to(x[:1], x.shape), np.broadcast_to(x[:, :1], x.shape)):
        loss, grad = fastce.cross_entropy_with_grad(view.copy(), case["targets"])
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(view, case["targets"])
        assert actual_loss == loss
        np.testing.assert_array_equal(actual_grad, grad)


@dtypes
@shapes
def test_broadcast_targets_and_weights(case, isa):
    one = {name: case[name][:1] for name in ("targets", "class_weight", "sample_weight")}
    views = {name: np.broadcast_to(one[name], case[name].shape) for name in one}
    copies = {name: view.copy() for name, view in views.items()}
    loss, grad = fastce.cross_entropy_with_grad(case["logits"], **copies)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(case["logits"], **views)
    assert actual_loss == loss
    np.testing.assert_array_equal(actual_grad, grad)


@dtypes
@shapes
@pytest.mark.parametrize("layout", ["Fortran", "reversed", "every second", "inside a larger array"])
def test_any_layout_of_out(layout, case, isa):
    """The gradient lands in the caller's strides, and nowhere between them."""
    x, y = case["logits"], case["targets"]
    _, grad = fastce.cross_entropy_with_grad(x, y)
    out = LAYOUTS[layout](np.zeros_like(x))
    _, actual = fastce.cross_entropy_with_grad(x, y, out=out)
    assert actual is out
    np.testing.assert_array_equal(out, grad)
    if out.base is not None and out.base.size > out.size:
        assert np.count_nonzero(out.base != 7) == np.count_nonzero(out != 7)


@dtypes
@shapes
@pytest.mark.parametrize("layout", ["Fortran", "reversed", "every second", "inside a larger array"])
def test_any_layout_in_place(layout, case, isa):
    _, grad = fastce.cross_entropy_with_grad(case["logits"], case["targets"])
    x = LAYOUTS[layout](case["logits"])
    _, actual = fastce.cross_entropy_with_grad(x, case["targets"], out=x)
    assert actual is x
    np.testing.assert_array_equal(x, grad)


def test_a_subclass_of_ndarray_gives_an_ndarray(rng):
    class Odd(np.ndarray):
        pass

    x = rng.normal(size=(4, 3)).astype(np.float32)
    loss, grad = fastce.cross_entropy_with_grad(x, [0, 1, 2, 0])
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x.view(Odd), [0, 1, 2, 0])
    assert actual_loss == loss
    assert type(actual_grad) is np.ndarray
    np.testing.assert_array_equal(actual_grad, grad)


def test_a_memory_map(tmp_path, rng):
    x = rng.normal(size=(100, 10)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = rng.integers(0, 10, 100)
    assert fastce.cross_entropy(mapped, y) == fastce.cross_entropy(x, y)


@pytest.mark.parametrize("layout", ["C", "Fortran", "reversed", "every second", "read-only"])
@pytest.mark.parametrize("shape", [(20_000, 50), (100, 10_000)], ids=str)
def test_the_logits_are_not_copied(layout, shape, rng):
    """The loss of 4 MB of logits takes less than an eighth of that, the gradient that much more."""
    x = {"C": np.copy, **LAYOUTS}[layout](rng.normal(size=shape).astype(np.float32))
    y = rng.integers(0, shape[1], shape[0])
    fastce.cross_entropy_with_grad(x, y)
    tracemalloc.start()
    try:
        fastce.cross_entropy(x, y)
        loss_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        fastce.cross_entropy_with_grad(x, y)
        grad_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert loss_peak < x.nbytes / 8
    assert grad_peak < x.nbytes * (1 + 1 / 8)
