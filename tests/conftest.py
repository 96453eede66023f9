"""Fixtures of every test: which instruction set runs, the random numbers, a fresh Python."""

import os
import signal
import subprocess
import sys
import zlib

import hypothesis
import numpy as np
import pytest

import fastce

# Subprocesses import the installed fastce, as the tests themselves do, and not the sources in the
# current folder, which have no compiled kernel unless the installation is editable.
os.environ["PYTHONSAFEPATH"] = "1"

# Programs that tests start inherit an ignored SIGINT, as background jobs of a shell have it, and
# could not be interrupted; a handler they do not inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first call of a size may be slow on a busy machine, and no test here is timed.
hypothesis.settings.register_profile("fastce", deadline=None, max_examples=60)
hypothesis.settings.load_profile("fastce")


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request):
    """Run the test with the kernels of each instruction set that this CPU has."""
    if request.param not in fastce._kernel.isas():
        pytest.skip(f"this CPU or build has no {request.param}")
    previous = fastce._kernel.use_isa(request.param)
    yield request.param
    fastce._kernel.use_isa(previous)


@pytest.fixture
def rng(request):
    """Random numbers of this test's own; FASTCE_TEST_SEED draws others.  Shown when it fails."""
    seed = [zlib.crc32(request.node.name.encode()), int(os.environ.get("FASTCE_TEST_SEED", "0"))]
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture
def python():
    """Run a few lines in a fresh Python: python(code, NAME=value) returns the finished process.

    Without the settings of this process's environment; 60 s are for a machine on its knees.
    """

    def run(code, **env):
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("FASTCE_", "OMP_", "PYTHONW"))
        }
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**inherited, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
