"""Any layout of any argument gives the bits of the contiguous one, without copying the logits."""

import array
import mmap
import os
import subprocess
import sys
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
shapes = pytest.mark.parametrize(
    "shape", [(70, 2), (17, 3), (33, 10), (20, 33), (5, 1025)], ids=str
)


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


# ---------- any axis

BATCHES = [(3, 5, 9), (2, 120, 5), (3, 19, 130), (1, 257, 17), (4, 3, 2, 6)]  # classes last


@dtypes
@pytest.mark.parametrize("shape", BATCHES, ids=str)
def test_any_axis_has_the_bits_of_the_last(shape, dtype, isa, rng):
    """Channels first is read as it lies, and its rows' sums are in the same order."""
    x = (rng.normal(size=shape) * 5).astype(dtype)
    y = rng.integers(0, shape[-1], shape[:-1])
    y.flat[1] = -100
    options = {
        "class_weight": rng.uniform(size=shape[-1]),
        "sample_weight": rng.uniform(size=shape[:-1]),
    }
    for reduction in ("mean", "none"):
        options["reduction"] = reduction
        loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
        for axis in range(-x.ndim, x.ndim):
            moved = np.moveaxis(x, -1, axis).copy()
            actual_loss, actual_grad = fastce.cross_entropy_with_grad(
                moved, y, axis=axis, **options
            )
            np.testing.assert_array_equal(actual_loss, loss)
            np.testing.assert_array_equal(np.moveaxis(actual_grad, axis, -1), grad)
            assert actual_grad.flags.c_contiguous
            fastce.cross_entropy_with_grad(moved, y, axis=axis, **options, out=moved)
            np.testing.assert_array_equal(np.moveaxis(moved, axis, -1), grad)


@dtypes
@pytest.mark.parametrize("shape", [(2, 9, 37), (3, 120, 5), (2, 5, 4, 6)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_a_batch_of_images(layout, shape, dtype, isa, rng):
    """(N, C, ...) with axis=1: the logits, the targets, the weights and out in every layout.

    Ten draws: a sum in another order differs in the last bit of a double once in four.
    """
    change = LAYOUTS[layout]
    rows = (shape[0], *shape[2:])
    for _ in range(10):
        x = rng.normal(size=shape).astype(np.float64 if layout == "list" else dtype)
        y, w = rng.integers(0, shape[1], rows), rng.uniform(size=rows)
        loss, grad = fastce.cross_entropy_with_grad(x, y, axis=1, sample_weight=w)
        actual_loss, actual_grad = fastce.cross_entropy_with_grad(
            change(x), change(y), axis=1, sample_weight=change(w)
        )
        assert actual_loss == loss
        np.testing.assert_array_equal(actual_grad, grad)
    if layout in ("Fortran", "transposed", "reversed", "every second", "inside a larger array"):
        out = change(np.zeros_like(x))
        fastce.cross_entropy_with_grad(x, y, axis=1, sample_weight=w, out=out)
        np.testing.assert_array_equal(out, grad)
        x = change(x)
        fastce.cross_entropy_with_grad(x, y, axis=1, sample_weight=w, out=x)
        np.testing.assert_array_equal(x, grad)


def test_a_label_is_named_by_its_place_in_the_targets():
    x, y = np.zeros((2, 10, 3, 4), np.float32), np.zeros((2, 3, 4), int)
    y[1, 2, 3] = 10
    with pytest.raises(ValueError, match=r"targets\[1, 2, 3\] is 10, outside \[0, 10\)"):
        fastce.cross_entropy(x, y, axis=1)


@pytest.mark.parametrize("layout", ["C", "Fortran", "reversed", "every second"])
def test_python_does_not_copy_channels_first(layout, rng):
    x = {"C": np.copy, **LAYOUTS}[layout](rng.normal(size=(4, 20, 100, 100)).astype(np.float32))
    y = rng.integers(0, 20, (4, 100, 100))
    tracemalloc.start()
    try:
        fastce.cross_entropy(x, y, axis=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 8


@pytest.mark.parametrize("layout", ["C", "Fortran", "reversed", "every second", "read-only"])
@pytest.mark.parametrize("shape", [(20_000, 50), (100, 10_000)], ids=str)
def test_python_does_not_copy_the_logits(layout, shape, rng):
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


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("step", [1, 2, -1])
def test_python_does_not_copy_the_targets(step, dtype):
    """Not to another dtype either: a million of them, and less than 64 KB for the call."""
    x = np.broadcast_to(np.float32([[1, 2]]), (1_000_000, 2))
    y = np.zeros(1_000_000 * abs(step), dtype)[::step]
    tracemalloc.start()
    try:
        fastce.cross_entropy(x, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**16


# ---------- beyond 32 bits

GIB = 2**30


@pytest.fixture
def nine_gib():
    """Addresses without memory: pages that nobody writes are the one page of zeros."""
    if sys.platform != "linux":
        pytest.skip("needs Linux's MAP_NORESERVE")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # Python names it from 3.13 on
    try:
        return np.frombuffer(mmap.mmap(-1, 9 * GIB, flags=flags), np.uint8)
    except OSError:
        pytest.skip("no 9 GiB of addresses")


@pytest.mark.parametrize("shape", [(3, 5), (3, 1000)], ids=str)
def test_rows_four_gib_apart(shape, nine_gib, isa, rng):
    x = np.lib.stride_tricks.as_strided(
        nine_gib.view(np.float32), shape, (4 * GIB + 64, 4), writeable=True
    )
    x[...] = rng.normal(size=shape)
    y = rng.integers(0, shape[1], shape[0])
    loss, grad = fastce.cross_entropy_with_grad(x.copy(), y)
    assert fastce.cross_entropy(x, y) == loss
    fastce.cross_entropy_with_grad(x, y, out=x)
    np.testing.assert_array_equal(x, grad)


def test_classes_four_gib_apart(nine_gib, isa, rng):
    x = np.lib.stride_tricks.as_strided(
        nine_gib.view(np.float32), (20, 3), (4, 4 * GIB + 4096), writeable=True
    )
    x[...] = rng.normal(size=(20, 3))
    y = rng.integers(0, 3, 20)
    loss, grad = fastce.cross_entropy_with_grad(x.copy(), y)
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y)
    assert actual_loss == loss
    np.testing.assert_array_equal(actual_grad, grad)


@pytest.mark.parametrize("n_classes", [50, 1000])
def test_more_than_two_to_the_31_logits(n_classes, nine_gib):
    """Only the last rows are there, and ignored rows are not read."""
    n_rows = 2**31 // n_classes + 1000
    x = nine_gib.view(np.float32)[: n_rows * n_classes].reshape(n_rows, n_classes)
    y = np.full(n_rows, -100, np.int8)
    y[-3:] = 3
    x[-3:, 3] = 2
    loss = fastce.cross_entropy(x, y)
    np.testing.assert_allclose(loss, np.log1p((n_classes - 1) * np.exp(-2)), rtol=1e-6)


def test_arrays_by_protocol(rng):
    """What np.asarray takes is taken: memoryviews, array.array, objects with __array__."""

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return x

    x = rng.normal(size=(4, 3))
    y = np.array([0, 2, 1, 1])
    expected = fastce.cross_entropy(x, y)
    assert fastce.cross_entropy(Tensor(), y) == expected
    assert fastce.cross_entropy(memoryview(x), memoryview(y)) == expected
    assert fastce.cross_entropy(x, array.array("q", y)) == expected


BETWEEN_GUARDS = """
import ctypes, itertools, mmap
import numpy as np
import fastce

libc, pages = ctypes.CDLL(None, use_errno=True), 1 << 20

def between_guards():
    # a megabyte whose neighbouring pages may not be touched
    memory = mmap.mmap(-1, pages + 2 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for start in (base, base + mmap.PAGESIZE + pages):
        assert libc.mprotect(ctypes.c_void_p(start), mmap.PAGESIZE, 0) == 0
    return np.frombuffer(memory, np.uint8)[mmap.PAGESIZE : mmap.PAGESIZE + pages]
"""

GUARDED = """
buffers = [between_guards() for _ in range(5)]
rng = np.random.default_rng(0)
n_rows = (1, 2, 3, 15, 16, 17, 33, 64, 65)
n_classes = (*range(1, 36), 63, 65, 100, 111, 112, 113, 127, 223, 224, 225, 300)
shapes = list(itertools.product(n_rows, n_classes))
shapes += [(1, 5000), (3, 2049), (2, 33_001), (500, 10), (999, 2)]
for n_rows, n_classes in shapes:
    for dtype in (np.float32, np.float64):
        plain = (
            rng.normal(size=(n_rows, n_classes)).astype(dtype),
            rng.integers(0, n_classes, n_rows).astype(np.int8 if n_classes < 100 else np.int64),
            rng.uniform(size=n_classes),
            rng.uniform(size=n_rows),
            np.empty((n_rows, n_classes), dtype),
        )
        weights = dict(class_weight=plain[2], sample_weight=plain[3])
        loss, grad = fastce.cross_entropy_with_grad(*plain[:2], **weights)
        for at_end in (True, False):
            guarded = []
            for buffer, a in zip(buffers, plain):
                place = buffer[-a.nbytes:] if at_end else buffer[:a.nbytes]
                guarded.append(place.view(a.dtype).reshape(a.shape))
                guarded[-1][...] = a
            x, y, c, s, out = guarded
            weights = dict(class_weight=c, sample_weight=s)
            assert fastce.cross_entropy(x, y, **weights) == loss
            fastce.cross_entropy_with_grad(x, y, **weights, out=out)
            assert (out == grad).all()
            fastce.cross_entropy_with_grad(x, y, **weights, out=x)
            assert (x == grad).all()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_nothing_beyond_the_arrays_is_touched(isa, python):
    """Each argument ends, or begins, at a page that may not be read: an overrun is a crash."""
    done = python(BETWEEN_GUARDS + GUARDED, FASTCE_ISA=isa)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


GUARDED_OPTIONS = """
buffers = [between_guards() for _ in range(7)]
rng = np.random.default_rng(0)
dtypes = [np.dtype(name) for name in ("f2", "f4", "f8")]
try:
    import ml_dtypes
    dtypes.append(np.dtype(ml_dtypes.bfloat16))
except ImportError:
    pass

def guarded(i, a):
    # at an end of buffer i, in the memory order that a has
    flat = a.T if a.flags.f_contiguous else np.ascontiguousarray(a)
    place = buffers[i][-a.nbytes:] if rng.random() < 0.5 else buffers[i][:a.nbytes]
    there = place.view(a.dtype).reshape(flat.shape)
    there[...] = flat
    return there.T if a.flags.f_contiguous else there

def some(shape):
    # as it is or with the classes apart
    a = rng.random(shape)
    return np.asfortranarray(a) if rng.random() < 0.3 else a

for _ in range(1500):
    n_rows = int(rng.choice([1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 64, 65]))
    n_classes = int(rng.choice([*range(1, 20), 31, 33, 65, 112, 113, 127, 224, 225, 300, 1025]))
    shape, dtype = (n_rows, n_classes), rng.choice(dtypes)
    x = guarded(0, some(shape).astype(dtype, order="K"))
    out = guarded(1, some(shape).astype(rng.choice(dtypes), order="K"))
    y = rng.integers(0, n_classes, n_rows).astype("i1" if n_classes < 100 else "i8")
    soft = some(shape).astype("f8" if dtype == np.float64 else "f4", order="K")
    where = guarded(3, some(shape) < 0.7)
    options = dict(
        where=where if rng.random() < 0.7 else guarded(3, rng.random(n_rows) < 0.5),
        class_weight=guarded(4, rng.random(n_classes)),
        sample_weight=guarded(5, rng.random(n_rows)),
        label_smoothing=0.1, z_loss=0.1, softcap=3.0, logit_scale=2.0,
        upstream=guarded(6, rng.random(n_rows)), reduction="none",
    )
    options = {name: value for name, value in options.items() if rng.random() < 0.4}
    if "upstream" in options:
        options["reduction"] = "none"
    kind = rng.integers(5)
    if kind < 2:
        targets = guarded(2, soft if rng.random() < 0.3 else y)
        fastce.cross_entropy(x, targets, **{k: v for k, v in options.items() if k != "upstream"})
        fastce.cross_entropy_with_grad(x, targets, out=out, **options)
    elif kind == 2:
        fastce.cross_entropy_with_grad_hess(x, guarded(2, y), **options)
        fastce.softmax(x, out=out)
        fastce.log_softmax(x, out=out)
        fastce.logsumexp(x)
    elif kind == 3:
        weights = guarded(4, rng.random(n_classes))
        fastce.nll_loss_with_grad(x, guarded(2, y), out=out, class_weight=weights)
        fastce.evaluate(x, guarded(2, y))
    else:
        labels = guarded(2, (some(shape) < 0.5).astype("i1", order="K"))
        weights = guarded(4, rng.random(n_classes))
        fastce.binary_cross_entropy_with_grad(x, labels, where=where, out=out, pos_weight=weights)
        fastce.binary_focal_loss_with_grad(x, labels, gamma=1.5, out=out)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_nothing_beyond_the_arrays_of_options_is_touched(isa, python):
    """Halves, masks, soft targets, weights, gradients of another dtype, and other losses."""
    done = python(BETWEEN_GUARDS + GUARDED_OPTIONS, FASTCE_ISA=isa)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 10, 33, 112, 224, 225, 1001])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_gradients_past_the_caches_fill_their_rows_alone(n_classes, offset, dtype, isa, rng):
    """So many rows that lines are streamed: they begin and end inside of lines."""
    n_rows = (1 << 22) // n_classes + 77  # 8 MB of float16
    x = rng.standard_normal((n_rows, n_classes)).astype(dtype)
    y = rng.integers(0, n_classes, n_rows)
    memory = np.full(x.size + 16, 7, dtype)
    out = memory[offset : offset + x.size].reshape(x.shape)
    losses, _ = fastce.cross_entropy_with_grad(x, y, reduction="none", out=out)
    assert (memory[:offset] == 7).all()
    assert (memory[offset + x.size :] == 7).all()
    for part in np.array_split(np.arange(n_rows), 9):  # small enough to stay in the caches
        some, grad = fastce.cross_entropy_with_grad(x[part], y[part], reduction="none")
        np.testing.assert_array_equal(losses[part], some)
        np.testing.assert_array_equal(out[part], grad)


@pytest.mark.parametrize(
    ("dtype", "out_dtype"), [(np.float64, np.float32), (np.float32, np.float16)]
)
def test_a_large_narrower_out_in_every_second_place(dtype, out_dtype, isa):
    """No whole vectors fit there, and none is waited for."""
    n = 8_400_000 // np.dtype(dtype).itemsize // 3
    x = np.random.default_rng(0).standard_normal((3, n)).astype(dtype)
    out = np.empty((3, 2 * n + 2), out_dtype)[:, 1::2][:, :n]
    y = np.zeros(n, int)
    fastce.cross_entropy_with_grad(x, y, axis=0, out=out)
    expected = fastce.cross_entropy_with_grad(x, y, axis=0, out=np.empty((3, n), out_dtype))[1]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer maps terabytes"
)
def test_a_row_alone_in_steps_takes_little_memory():
    """The strips are as many as there are rows: 16 of them would be 2 GB."""
    code = (
        "import numpy as np, resource, fastce\n"
        "x = np.zeros((1, 2 * 8_000_000), np.float32)[:, ::2]\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))\n"
        "print(fastce.cross_entropy(x, [0], n_threads=1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stderr == ""
    assert float(done.stdout) == pytest.approx(np.log(8e6), rel=1e-6)
