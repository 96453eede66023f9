"""How threads are run: the pool, OpenMP or none; the same bits from each; after forks; from many
callers at once; and beside signals."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastce

BACKENDS = ("pool", "openmp", "serial")

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def without_openmp():
    """Whether this build has no OpenMP, by the only way to ask: choosing it."""
    before = fastce._kernel.threading()
    try:
        fastce._kernel.use_threading("openmp")
    except ValueError:
        return True
    fastce._kernel.use_threading(before)
    return False


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "openmp" and without_openmp():
        pytest.skip("this build has no OpenMP")
    before = fastce._kernel.use_threading(request.param)
    yield request.param
    fastce._kernel.use_threading(before)


def batch(rng, shape, dtype=np.float32):
    return (5 * rng.normal(size=shape)).astype(dtype), rng.integers(0, shape[1], shape[0])


def same(actual, expected):
    assert actual[0] == expected[0]
    np.testing.assert_array_equal(actual[1], expected[1])


# ---------- which one

USED = "import fastce; print(fastce.show_config('dicts')['threading']['backend'])"


def test_the_environment_chooses(backend, python):
    done = python(USED, FASTCE_THREADING=backend)
    assert done.stdout == f"{backend}\n"
    assert done.stderr == ""


def test_the_pool_is_the_default(python):
    assert python(USED).stdout == "pool\n"
    assert python(USED, FASTCE_THREADING="").stdout == "pool\n"


@pytest.mark.parametrize("name", ["nonsense", "OpenMP", "0", "pool "])
def test_the_environment_cannot_choose_an_unknown_one(name, python):
    """Refused at import, never a silent fallback; the last line names variable and value."""
    done = python(USED, FASTCE_THREADING=name)
    assert done.returncode != 0
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: FASTCE_THREADING: ")
    assert repr(name) in last
    assert "'pool'" in last
    assert done.stderr.count("Traceback") == 1  # no chain of exceptions


def test_switching(backend):
    assert fastce.show_config(mode="dicts")["threading"]["backend"] == backend
    assert fastce._kernel.use_threading("serial") == backend
    assert fastce._kernel.use_threading("pool") == "serial"
    for name in ("nonsense", "", "Pool", None, 3):
        with pytest.raises(ValueError, match="threading is"):
            fastce._kernel.use_threading(name)
        assert fastce._kernel.threading() == "pool"


# ---------- the same bits


@pytest.mark.parametrize("shape", [(20_000, 10), (400, 1000), (5, 50_257)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_way_has_the_same_bits(backend, shape, dtype, rng):
    x, y = batch(rng, shape, dtype)
    fastce._kernel.use_threading("serial")
    expected = fastce.cross_entropy_with_grad(x, y, n_threads=1)
    p = fastce.softmax(x, n_threads=1)
    fastce._kernel.use_threading(backend)
    for n_threads in (1, 2, 3, 8):
        same(fastce.cross_entropy_with_grad(x, y, n_threads=n_threads), expected)
        np.testing.assert_array_equal(fastce.softmax(x, n_threads=n_threads), p)


def test_the_count_may_change_at_every_call(backend, rng):
    """300 calls: a helper that wakes late finds another job, or none, and must not run the last."""
    batches = [batch(rng, shape) for shape in ((9000, 10), (64, 10), (60, 2000))]
    expected = [fastce.cross_entropy_with_grad(x, y, n_threads=1) for x, y in batches]
    for i in range(300):
        same(fastce.cross_entropy_with_grad(*batches[i % 3], n_threads=1 + i % 5), expected[i % 3])


def test_the_way_may_change_at_every_call(rng):
    x, y = batch(rng, (9000, 10))
    expected = fastce.cross_entropy_with_grad(x, y, n_threads=1)
    before = fastce._kernel.threading()
    names = [name for name in BACKENDS if name != "openmp" or not without_openmp()]
    try:
        for i in range(60):
            fastce._kernel.use_threading(names[i % len(names)])
            same(fastce.cross_entropy_with_grad(x, y, n_threads=2 + i % 2), expected)
    finally:
        fastce._kernel.use_threading(before)


def test_many_callers_at_once(backend, rng):
    """One has the pool, the others go on alone: none waits for another, none takes its work."""
    batches = [batch(rng, shape) for shape in ((9000, 10), (5000, 3), (60, 2000))]
    expected = [fastce.cross_entropy_with_grad(x, y, n_threads=1) for x, y in batches]
    together = threading.Barrier(8, timeout=60)

    def work(i):
        together.wait()
        for k in range(25):
            n = (i + k) % 3
            same(fastce.cross_entropy_with_grad(*batches[n], n_threads=1 + k % 4), expected[n])

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(work, range(8)))


# ---------- forks

# A hung child is ended by its alarm, before the test's own limit.
FORK = """
import os, signal, sys, warnings
import numpy as np, fastce
warnings.simplefilter("ignore")  # Python 3.12 warns about every fork beside threads
x = np.random.default_rng(0).normal(size=(20_000, 10)).astype(np.float32)
y = np.arange(20_000) % 10
expected = fastce.cross_entropy_with_grad(x, y, n_threads=1)
def right(n_threads=2):
    loss, grad = fastce.cross_entropy_with_grad(x, y, n_threads=n_threads)
    return loss == expected[0] and (grad == expected[1]).all()
def in_child(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0
"""


@forks
def test_a_child_computes_with_threads(backend, python):
    """So does the parent after it, more than once, and a child of the child."""
    done = python(
        FORK
        + """
print(right(), right(4))
for _ in range(3):
    print(in_child(lambda: right() and right(3) and right(1)), right())
print(in_child(lambda: right() and in_child(lambda: right() and right(3)) and right()))
print(in_child(lambda: in_child(right)), right())
""",
        FASTCE_THREADING=backend,
    )
    assert done.stdout.split() == ["True"] * 11, done.stderr


@forks
@pytest.mark.parametrize("then", ["pool", "openmp", "serial"])
def test_a_child_after_openmp_may_use_any(then, python):
    """libgomp hangs in the child of a process where it ran: there the call runs alone."""
    if without_openmp():
        pytest.skip("this build has no OpenMP")
    done = python(
        FORK
        + f"""
print(right())
def child():
    fastce._kernel.use_threading({then!r})
    return right() and right(3)
print(in_child(child), in_child(lambda: in_child(child)), right())
""",
        FASTCE_THREADING="openmp",
    )
    assert done.stdout.split() == ["True"] * 4, done.stderr


@forks
def test_a_fork_during_a_call(python):
    """Another thread of the parent has the pool just then; nobody holds it in the child."""
    done = python(
        FORK
        + """
import threading
done = threading.Event()
def work():
    while not done.is_set():
        right(3)
thread = threading.Thread(target=work)
thread.start()
print(*[in_child(right) for _ in range(10)])
done.set()
thread.join()
print(right())
"""
    )
    assert done.stdout.split() == ["True"] * 11, done.stderr


@forks
def test_multiprocessing_by_fork(python):
    done = python(
        FORK
        + """
import multiprocessing
print(right(4))
with multiprocessing.get_context("fork").Pool(3) as workers:
    print(*workers.map_async(right, [1, 2, 3, 4, 2, 8]).get(timeout=30))
print(right(4))
"""
    )
    assert done.stdout.split() == ["True"] * 8, done.stderr


@forks
def test_a_child_has_a_pool_of_its_own(python):
    """Not only right: with helpers, as many as its parent has."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("counts threads in /proc")
    done = python(
        FORK
        + """
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
print(right(4), count() - before)
print(in_child(lambda: count() == 1 and right(4) and count() == 4))
"""
    )
    assert done.stdout.split() == ["True", "3", "True"], done.stderr


# ---------- what the pool is to the rest of the process


def test_helpers_are_made_once_and_only_when_asked_for(python):
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("counts threads in /proc")
    done = python(
        FORK
        + """
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
for n_threads in (1, 2, 2, 4, 3, 1, 4, 2):
    right(n_threads)
    print(count() - before)
"""
    )
    assert [int(n) for n in done.stdout.split()] == [0, 1, 1, 3, 3, 3, 3, 3], done.stderr


def test_signals_reach_the_main_thread(python):
    """Helpers block them all, so that a program may wait for one in the thread that it chose."""
    done = python(
        FORK
        + """
right(4)
for name in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():
    if int(name) != os.getpid():
        for line in open(f"/proc/self/task/{name}/status"):
            if line.startswith("SigBlk"):
                mask = int(line.split()[1], 16)
                assert mask >> (signal.SIGINT - 1) & 1 and mask >> (signal.SIGUSR1 - 1) & 1, line
got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
for _ in range(50):
    os.kill(os.getpid(), signal.SIGUSR1)
    right(4)
print(len(got))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
print(right(6), signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGUSR2)  # would end the process if a helper took it
print(signal.sigtimedwait([signal.SIGUSR2], 10).si_signo == signal.SIGUSR2)
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        right(4)
except KeyboardInterrupt:
    print("interrupted")
""",
        OPENBLAS_NUM_THREADS="1",  # NumPy's threads block nothing
    )
    assert done.stdout.split() == ["50", "True", "True", "True", "interrupted"], done.stderr


def test_a_helper_leaves_the_callers_cpu(python):
    """Where both would only take turns; made on one CPU, it may use what the caller may later."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs, and a system that tells them")
    done = python(
        FORK
        + """
import time
cpus = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cpus[:1])
others = set(os.listdir("/proc/self/task"))
print(right(2))
(helper,) = set(os.listdir("/proc/self/task")) - others
end = time.monotonic() + 20
while os.sched_getaffinity(int(helper)) == {cpus[0]} and time.monotonic() < end:
    os.sched_setaffinity(0, cpus[:1])  # to this one,
    os.sched_setaffinity(0, cpus)  # where it stays as long as nobody else wants it
    for _ in range(10):
        right(2)
print(os.sched_getaffinity(int(helper)) == set(cpus[1:]))
""",
        OPENBLAS_NUM_THREADS="1",
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_the_process_ends_while_helpers_sleep(python):
    done = python(FORK + "print(right(8)); sys.exit(3)")
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 3)


# ---------- the floating-point mode of the caller

FLUSHING = """
import ctypes, platform, sys
import numpy as np
import fastce

libc, state = ctypes.CDLL(None), (ctypes.c_uint32 * 8)()
if platform.machine() != "x86_64" or not hasattr(libc, "fegetenv"):
    print("no way to ask"), sys.exit()
rng = np.random.default_rng(0)
x = 40 * rng.standard_normal((4000, 1000), dtype=np.float32)
y = rng.integers(0, 1000, 4000)
fastce.cross_entropy_with_grad(x, y, n_threads=2)  # its helper does not flush
libc.fegetenv(state)
state[7] |= 0x8040  # flush subnormals
libc.fesetenv(state)
assert np.float32(1e-40) * np.float32(1) == 0
def bits(n_threads):  # for now a subnormal is equal to 0
    return fastce.cross_entropy_with_grad(x, y, n_threads=n_threads)[1].view(np.int32)

for _ in range(5):
    np.testing.assert_array_equal(bits(2), bits(1))
print("same")
"""


def test_helpers_flush_subnormals_as_their_caller_does(backend, python):
    done = python(FLUSHING, FASTCE_THREADING=backend)
    assert done.stdout in ("same\n", "no way to ask\n"), done.stderr
