"""Threads change the time and nothing else: same bits, any count; asked for by call, block, process
or environment; and a fork after a threaded call goes on."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastce

# Few classes and long rows, large enough for every thread to get some; a few very long rows.
SHAPES = [(20_000, 10), (3001, 33), (400, 1000), (5, 50_257), (1, 200_003)]


def batch(rng, shape, dtype):
    x = (rng.normal(size=shape) * 5).astype(dtype)
    y = rng.integers(0, shape[1], shape[0])
    y[1:2] = -100
    return x, y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_for_any_number_of_threads(shape, dtype, isa, rng):
    x, y = batch(rng, shape, dtype)
    options = {
        "class_weight": rng.uniform(size=shape[1]),
        "sample_weight": rng.uniform(size=shape[0]),
    }
    for reduction in ("mean", "none"):
        options["reduction"] = reduction
        loss, grad = fastce.cross_entropy_with_grad(x, y, n_threads=1, **options)
        for n_threads in (2, 3, 5, 8):
            actual_loss, actual_grad = fastce.cross_entropy_with_grad(
                x, y, n_threads=n_threads, **options
            )
            np.testing.assert_array_equal(actual_loss, loss, strict=True)
            np.testing.assert_array_equal(actual_grad, grad, strict=True)
            alone = fastce.cross_entropy(x, y, n_threads=n_threads, **options)
            np.testing.assert_array_equal(alone, loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1000, 2), (999, 10), (501, 17), (130, 1000), (3, 50_257)], ids=str
)
def test_a_row_has_the_same_bits_wherever_it_stands(shape, dtype, isa, rng):
    """In another order, alone, or in a tail of the lanes."""
    x, y = batch(rng, shape, dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, y, reduction="none")
    order = rng.permutation(shape[0])
    actual_loss, actual_grad = fastce.cross_entropy_with_grad(x[order], y[order], reduction="none")
    np.testing.assert_array_equal(actual_loss, loss[order])
    np.testing.assert_array_equal(actual_grad, grad[order])
    for i in range(0, shape[0], 1 + shape[0] // 40):
        for n in (1, 3):
            rows = slice(i, i + n)
            few_loss, few_grad = fastce.cross_entropy_with_grad(x[rows], y[rows], reduction="none")
            np.testing.assert_array_equal(few_loss, loss[rows])
            np.testing.assert_array_equal(few_grad, grad[rows])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(37, 3), (33, 10), (19, 120), (3, 5001)], ids=str)
def test_same_bits_at_any_alignment(shape, dtype, isa, rng):
    """Of the logits and of out, down to an odd number of bytes."""
    x, y = batch(rng, shape, dtype)
    loss, grad = fastce.cross_entropy_with_grad(x, y)
    for start in (*range(0, 64, x.itemsize), 1, 3):
        buffers = np.zeros((2, x.nbytes + 128), np.uint8)
        moved, out = (b[start : start + x.nbytes].view(dtype).reshape(shape) for b in buffers)
        moved[...] = x
        if start % x.itemsize:
            assert not moved.flags.aligned
            actual_loss, actual_grad = fastce.cross_entropy_with_grad(moved, y)
        else:
            actual_loss, actual_grad = fastce.cross_entropy_with_grad(moved, y, out=out)
        assert actual_loss == loss
        np.testing.assert_array_equal(actual_grad, grad)


def test_python_threads_may_call_at_once(isa, rng):
    """Eight of them, on shared inputs, each with threads of its own."""
    batches = [batch(rng, shape, np.float32) for shape in [(5000, 10), (64, 10), (100, 1000)]]
    expected = [fastce.cross_entropy_with_grad(x, y) for x, y in batches]

    def work(i):
        for _ in range(20):
            (x, y), (loss, grad) = batches[i % 3], expected[i % 3]
            actual_loss, actual_grad = fastce.cross_entropy_with_grad(x, y, n_threads=1 + i % 4)
            assert actual_loss == loss
            np.testing.assert_array_equal(actual_grad, grad)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# ---------- how many


def test_the_count_is_set_for_the_process():
    before = fastce.get_num_threads()
    try:
        for n in (1, 2, 7, np.int64(3)):
            fastce.set_num_threads(n)
            assert fastce.get_num_threads() == n
    finally:
        fastce.set_num_threads(before)


def test_the_count_is_restored_after_a_block():
    before = fastce.get_num_threads()
    with fastce.threads(before + 3):
        assert fastce.get_num_threads() == before + 3
        with fastce.threads(1):
            assert fastce.get_num_threads() == 1
        assert fastce.get_num_threads() == before + 3
    assert fastce.get_num_threads() == before
    with pytest.raises(KeyError), fastce.threads(before + 1):
        raise KeyError
    assert fastce.get_num_threads() == before


def test_more_threads_than_cores_may_be_asked_for(rng):
    x, y = batch(rng, (20_000, 10), np.float32)
    expected = fastce.cross_entropy(x, y)
    assert fastce.cross_entropy(x, y, n_threads=300) == expected
    with fastce.threads(64):
        assert fastce.cross_entropy(x, y) == expected


def test_n_threads_of_a_call_leaves_the_process_alone(rng):
    before = fastce.get_num_threads()
    fastce.cross_entropy(*batch(rng, (20_000, 10), np.float32), n_threads=before + 2)
    assert fastce.get_num_threads() == before


COUNT = "import fastce; print(fastce.get_num_threads())"


@pytest.mark.parametrize(
    "env",
    [
        {"FASTCE_NUM_THREADS": "3"},
        {"OMP_NUM_THREADS": "3"},
        {"FASTCE_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"},
        {"FASTCE_NUM_THREADS": " 3 "},
    ],
    ids=str,
)
def test_the_environment_sets_the_count(env, python):
    done = python(COUNT, **env)
    assert done.stdout == "3\n"
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["FASTCE_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["many", "0", "-2", "1.5", "99999999999999999999", "3x"])
def test_a_malformed_environment_warns_and_is_ignored(name, value, python):
    """In one line that names the variable and the value; the import succeeds."""
    default = python(COUNT).stdout
    done = python(COUNT, **{name: value})
    assert done.stdout == default
    assert done.returncode == 0
    assert name in done.stderr
    assert value in done.stderr
    assert "Warning" in done.stderr


def test_a_malformed_setting_falls_back_to_the_next(python):
    done = python(COUNT, FASTCE_NUM_THREADS="many", OMP_NUM_THREADS="3")
    assert done.stdout == "3\n"
    assert "FASTCE_NUM_THREADS" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this platform")
def test_the_default_keeps_to_the_affinity(python):
    done = python("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + COUNT)
    assert done.stdout == "1\n"
    assert done.stderr == ""


# ---------- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_a_fork_after_a_threaded_call_goes_on(n_threads, python):
    """The child computes the same bits, threaded too; and so does its parent after it."""
    done = python(f"""
import os, signal, warnings
import numpy as np, fastce
x = np.random.default_rng(0).normal(size=(20_000, 10)).astype(np.float32)
y = np.arange(20_000) % 10
call = lambda: fastce.cross_entropy_with_grad(x, y, n_threads={n_threads})
loss, grad = call()
warnings.simplefilter("ignore")  # Python 3.12 warns about every fork beside threads
pid = os.fork()
if pid == 0:
    signal.alarm(20)  # a hung child does not outlive the test
    a, b = call()
    os._exit(0 if a == loss and (b == grad).all() else 1)
print(os.waitpid(pid, 0)[1])
a, b = call()
print(a == loss and (b == grad).all())
""")
    assert done.stdout == "0\nTrue\n", done.stderr


@pytest.mark.parametrize("n_classes", [10, 3000])
def test_labels_that_another_thread_changes_do_no_harm(python, n_classes):
    """They are checked, then read again without the GIL; what the row gets is anybody's guess."""
    done = python(
        "import sys, threading, time, numpy as np, fastce\n"
        f"x = np.zeros((600_000 // {n_classes}, {n_classes}), np.float32)\n"
        "y = np.zeros(len(x), np.int64)\n"
        "sys.setswitchinterval(1e-5)\n"
        "end = time.monotonic() + 1\n"
        "def change():\n"
        "    while time.monotonic() < end:\n"
        "        y[::7] = 2**44\n"
        "        y[::7] = 0\n"
        "threading.Thread(target=change).start()\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        fastce.cross_entropy_with_grad(x, y)\n"
        "    except ValueError:\n"
        "        pass\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
