"""Which kernels run, what the shared library exports, and that importing it changes nothing."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastce

LEVELS = {  # the flags of /proc/cpuinfo that each needs
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
    "baseline": set(),
}
USED = "import fastce; print(fastce._kernel.use_isa('baseline'))"


def test_the_fastest_of_this_cpu_is_chosen(python):
    """Against the operating system's own list of flags."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        pytest.skip("flags are read from Linux on x86-64")
    line = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    expected = [name for name, needed in LEVELS.items() if needed <= set(line.split())]
    assert sorted(fastce._kernel.isas()) == sorted(expected)
    assert python(USED).stdout.strip() == expected[0]


def test_the_environment_forces_one(isa, python):
    done = python(USED, FASTCE_ISA=isa)
    assert done.stdout.strip() == isa
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["avx1024", "AVX2 ", "neon512", "0"])
def test_the_environment_cannot_force_an_unknown_one(name, python):
    """Refused at import, never a silent fallback; the last line names variable and value."""
    done = python("import fastce", FASTCE_ISA=name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "FASTCE_ISA" in last
    assert repr(name) in last
    assert "baseline" in last


def test_switching_refuses_what_does_not_run_here():
    used = fastce._kernel.use_isa("baseline")
    fastce._kernel.use_isa(used)
    for name in {"sse9", "", "avx2", "avx512"} - set(fastce._kernel.isas()):
        with pytest.raises(ValueError, match=repr(name)):
            fastce._kernel.use_isa(name)
    assert fastce._kernel.use_isa(used) == used


def test_show_config_tells_what_runs(isa, capsys):
    config = fastce.show_config(mode="dicts")
    assert set(config) == {"version", "compiler", "isa", "threading"}
    assert config["version"] == fastce.__version__
    assert config["isa"]["used"] == isa
    assert config["isa"]["found"] == list(fastce._kernel.isas())
    assert set(config["isa"]["found"]) <= set(config["isa"]["compiled"])
    with fastce.threads(3):
        assert fastce.show_config(mode="dicts")["threading"]["n_threads"] == 3
    assert capsys.readouterr().out == ""
    assert fastce.show_config() is None
    printed = capsys.readouterr().out
    for value in (fastce.__version__, isa, config["compiler"], config["threading"]["backend"]):
        assert value in printed


def test_show_config_tells_which_threads_there_are():
    threading = fastce.show_config(mode="dicts")["threading"]
    assert set(threading["compiled"]) - {"openmp"} == {"pool", "serial"}
    used = threading["backend"]
    for name in threading["compiled"]:
        fastce._kernel.use_threading(name)
        assert fastce.show_config(mode="dicts")["threading"]["backend"] == name
    assert fastce._kernel.use_threading(used) == name
    for name in {"openmp", "threads"} - set(threading["compiled"]):
        with pytest.raises(ValueError, match=f"threading is '{name}', expected one of .*pool"):
            fastce._kernel.use_threading(name)


def test_show_config_tells_where_the_thread_count_came_from(python):
    code = "import fastce; print(fastce.show_config('dicts')['threading']['source'])"
    assert python(code, FASTCE_NUM_THREADS="2").stdout == "FASTCE_NUM_THREADS\n"
    assert python(code, OMP_NUM_THREADS="2").stdout == "OMP_NUM_THREADS\n"
    assert python(code).stdout in ("affinity\n", "cgroup quota\n")
    assert python(code.replace(";", "; fastce.set_num_threads(77);")).stdout == "set_num_threads\n"


def test_show_config_in_another_mode():
    with pytest.raises(ValueError, match=r"mode must be .*'yaml'"):
        fastce.show_config(mode="yaml")


# ---------- the shared library


def test_only_the_init_function_is_exported():
    """What else is visible could be bound to, or by, another library's symbol of that name."""
    if shutil.which("nm") is None or sys.platform != "linux":
        pytest.skip("needs nm and ELF")
    out = subprocess.run(
        ["nm", "-D", "--defined-only", fastce._kernel.__file__],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert [line.split()[-1] for line in out.splitlines()] == ["PyInit__kernel"]


def test_subnormals_survive_the_import(python):
    """A library linked with -ffast-math turns them off for the whole process, NumPy's too."""
    done = python("""
import sys, numpy as np, fastce
x = np.zeros((20_000, 10), np.float32)
fastce.cross_entropy_with_grad(x, [0] * 20_000, n_threads=4)
print(sys.float_info.min / 2 != 0, np.float32(1e-40) * np.float32(1) != 0)
""")
    assert done.stdout == "True True\n"


def test_nothing_but_numpy_is_imported(python):
    """Extras are imported when they are used."""
    done = python("""
import sys
before = set(sys.modules)
import fastce
names = {name.split(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - set(sys.stdlib_module_names) - {"fastce", "numpy", "cython_runtime"}))
""")
    assert done.stderr == ""
    assert [name for name in done.stdout.split() if not name.startswith("_")] == []
