"""The benchmark tells the truth or nothing: wrong results abort it, bad usage is one line."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce import cli
from fastce.benchmark import command, main, measure
from fastce.benchmark.exact import reference, worst_ulps
from fastce.benchmark.peers import OURS, PEERS, Peer, as_numpy, numpy_textbook, ours
from fastce.benchmark.regimes import (
    REGIMES,
    Figure,
    calls,
    child,
    few_classes,
    isa,
    long_rows,
    memory,
    scaling,
    threads,
)

TINY = ["--shapes", "5x3", "--seconds", "0.001"]


def test_table_and_json(tmp_path: Path) -> None:
    """The installed command times ours beside NumPy, and leaves what it printed as JSON."""
    path = tmp_path / "bench.json"
    args = [*TINY, "--peers", "numpy", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "fastce", "bench", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "custom 5x3" in done.stdout
    assert done.stderr == ""
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert row["shape"] == [5, 3]
    assert row["from"] == "cache"
    assert row["seconds"] > 0
    assert list(row["peers"]) == ["numpy"]
    low, high = (row["peers"]["numpy"]["ratio"][key] for key in ("low", "high"))
    assert 0 < low <= row["peers"]["numpy"]["ratio"]["median"] <= high
    assert row["ulps"]["loss"] <= 2
    assert row["ulps"]["grad"] <= 4
    assert found["machine"]["versions"]["numpy"] == np.__version__


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    assert main([*TINY, "--peers", "numpy", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def small_regimes(monkeypatch):
    """Every regime at sizes that take no time."""
    sizes = {"5x3": 0.0, "4x7": 1e9}  # shares of a copy's speed that are reached, and are not
    monkeypatch.setattr(long_rows, "CASES", (("float32", sizes), ("float16", {"4x7": None})))
    monkeypatch.setattr(few_classes, "N_ROWS", 8)
    monkeypatch.setattr(calls, "ROWS", (1,))
    monkeypatch.setattr(threads, "SHAPES", "5x3")
    monkeypatch.setattr(threads, "REPEATS", 2)
    monkeypatch.setattr(scaling, "DECADES", np.array([1.0, 2.0]))
    monkeypatch.setattr(memory, "SHAPES", "500x300")
    monkeypatch.setattr(memory, "PEERS", [p for p in PEERS if p.name in ("alloc", "numpy")])
    monkeypatch.setattr(isa, "SHAPES", "5x3")
    monkeypatch.setattr(isa, "ROUNDS", 1)


def test_every_regime_has_its_rows(small_regimes, tmp_path, capsys) -> None:
    path = tmp_path / "regimes.json"
    args = ["--regimes", "all", "--seconds", "0.001", "--threads", "2", "--json", str(path)]
    assert main(args) == 0
    out = capsys.readouterr().out
    found = json.loads(path.read_text())["regimes"]
    assert list(found) == list(REGIMES)
    for name, figures in found.items():
        lines = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        rows = [line for line in lines if "is not installed" not in line]
        assert len(rows) == len(figures)
        assert all(figure["case"] in row for figure, row in zip(figures, rows, strict=True))
        assert all(figure["ratio"] >= 0 for figure in figures)
    isas = fastce.show_config(mode="dicts")["isa"]["found"]
    assert len(found["isa"]) == len(isas) - 1
    assert [figure["at_least"] for figure in found["long-rows"][::2]][:2] == [0.0, 1e9]
    assert re.search(r"4x7  .*>= 1000000000.00 missed\n", out)
    assert " >= 0.00\n" in out
    n_goals = sum(
        f["at_least"] is not None or f["at_most"] is not None for fs in found.values() for f in fs
    )
    assert re.search(rf"\n\d+ of {n_goals} goals missed; .*\n$", out)


def test_a_copy_of_the_memory_that_a_call_takes_is_counted(small_regimes) -> None:
    """NumPy's textbook has three arrays beside the logits, ours one, in place none."""
    found = {figure.case.partition(", ")[2]: figure for figure in memory.figures(0.1)}
    assert list(found) == ["in place", "allocating", "numpy"]
    # of 600 KB; what the allocator keeps, and pages
    assert found["numpy"].ratio > found["allocating"].ratio + 1 > found["in place"].ratio + 1.8


def test_what_is_left_out_is_said(small_regimes, tmp_path, monkeypatch, capsys) -> None:
    """A package that is missing, or memory for one peer, costs its own rows only."""

    def run(module, name, size):
        if name == "numpy":
            raise ChildProcessError("MemoryError: too much")
        return "0"

    path = tmp_path / "regimes.json"
    monkeypatch.setattr(long_rows, "CASES", (("bfloat16", {"5x3": None}), ("float32", {"5x3": 0})))
    monkeypatch.setattr(long_rows, "find_spec", lambda name: None)
    monkeypatch.setattr(threads, "find_spec", lambda name: None)
    monkeypatch.setattr(memory, "run", run)
    names = "long-rows,threads,memory"
    args = ["--regimes", names, "--seconds", "0.001", "--threads", "2", "--json", str(path)]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "\nlong-rows    bfloat16: ml_dtypes is not installed\n" in out
    assert "\nthreads      PyTorch is not installed\n" in out
    assert "\nmemory       500x300, numpy: MemoryError: too much\n" in out
    found = json.loads(path.read_text())["regimes"]
    assert [len(found[name]) for name in found] == [2, 3, 2]


def test_one_thread_has_nothing_to_choose_and_nothing_to_gain(small_regimes, capsys) -> None:
    assert main(["--regimes", "threads,scaling", "--seconds", "0.001", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "one thread: there is nothing to choose" in out
    assert "ns an element" in out
    assert "times as fast" not in out


def test_a_child_takes_no_module_of_the_present_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH")  # of conftest.py
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise ImportError('of the present folder')")
    (seconds,) = json.loads(child.run(isa.__name__, "5x3"))
    assert seconds > 0


def test_what_a_child_says_last_is_one_line_of_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(isa, "SHAPES", "5x0")
    assert cli.main(["bench", "--regimes", "isa"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastce bench: ValueError: ")
    assert err.count("\n") == 1


def state_of(pid: int) -> str:
    """As ps has it; X if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_neighbour_ends_with_its_parent() -> None:
    code = """
import os, signal
from fastce.benchmark.regimes.threads import neighbour
with neighbour() as process:
    print(process.pid, process.poll(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60)
    pid, poll = done.stdout.split()
    assert poll == b"None"
    deadline = time.monotonic() + 60
    while state_of(int(pid)) not in "XZ":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_scaling_has_a_plot(small_regimes, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "scaling.png"
    assert main(["--regimes", "scaling", "--seconds", "0.001", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("bounds", "goal", "ratios_that_miss"),
    [
        ({"at_least": 0.85}, ">= 0.85", [0.84, np.nan]),
        ({"at_most": 0.85}, "<= 0.85", [0.86, np.nan]),
        ({}, "", []),
    ],
)
def test_a_goal_is_missed_or_not(bounds, goal, ratios_that_miss) -> None:
    for ratio in (0.84, 0.85, 0.86, np.nan):
        figure = Figure("5x3", ratio, "of a copy", **bounds)
        assert figure.goal == goal
        assert figure.is_missed == any(
            ratio is other or ratio == other for other in ratios_that_miss
        )


def _changed(change, adapter=numpy_textbook):
    """An adapter whose results pass through `change(loss, grad, reduction)`."""

    def changed(logits, targets, grad, reduction):
        call = adapter(logits, targets, grad, reduction)
        return lambda: change(*as_numpy(call()), reduction)

    return changed


def _undivided(loss, grad, reduction):
    return loss, grad * 5 if reduction == "mean" else grad


BROKEN = {
    "loss": _changed(lambda loss, grad, reduction: (loss * 1.001, grad)),
    "gradient": _changed(lambda loss, grad, reduction: (loss, grad + 1e-4)),
    "divisor": _changed(_undivided),
    "nan": _changed(lambda loss, grad, reduction: (loss * np.nan, grad)),
    "dtype": _changed(lambda loss, grad, reduction: (loss, grad.astype(np.float64))),
    "unwritten": lambda x, y, grad, reduction: (
        lambda: (numpy_textbook(x, y, grad, reduction)()[0], grad)
    ),
}


def _no_timing(*args, **kwargs):
    pytest.fail("timed before its results were right")


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_peer_aborts(fault, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "PEERS", (Peer("broken", "numpy", BROKEN[fault], ""),))
    monkeypatch.setattr(measure, "take_turns", _no_timing)
    assert main(TINY) == 1
    assert capsys.readouterr().err.startswith("fastce bench: wrong result: broken")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_ulps", [16, -16])
def test_ours_is_held_to_ulps(dtype, n_ulps, monkeypatch, capsys) -> None:
    """What a peer may get away with, a relative error of a few 1e-6, aborts when it is ours."""

    def off(loss, grad, reduction):
        return loss, grad * (1 + n_ulps * np.finfo(grad.dtype).eps)

    monkeypatch.setattr(measure, "OURS", OURS._replace(adapter=_changed(off, ours)))
    monkeypatch.setattr(measure, "take_turns", _no_timing)
    assert main([*TINY, "--peers", "none", "--dtype", dtype]) == 1
    assert "wrong result: fastce" in capsys.readouterr().err


def test_raising_peer_is_skipped(monkeypatch, capsys) -> None:
    """One that cannot run, as torch.compile without a compiler, is left out, and it is said."""

    def raises(logits, targets, grad, reduction):
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr(command, "PEERS", (Peer("frail", "numpy", raises, ""),))
    assert main(TINY) == 0
    assert "frail skipped: RuntimeError: no compiler\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["--shapes", "0x10"], "--shapes"),
        (["--shapes", "64x10,"], "--shapes"),
        (["--shapes", "999999999x999999999"], "--shapes"),
        (["--peers", "abacus"], "--peers"),
        (["--peers", "none,numpy"], "'none,numpy'"),
        (["--peers", "numpy,\nnumpy"], "--peers"),
        (["--threads", "0"], "--threads"),
        (["--threads", "two"], "--threads"),
        (["--dtype", "int8"], "--dtype"),
        (["--seconds", "nan"], "--seconds"),
        (["--json", "no-such-folder/bench.json"], "--json"),
        (["--plot", "."], "--plot"),
        (["--json"], "--json"),
        (["--regimes", "calls,tea"], "--regimes"),
        (["--regimes", "calls", "--shapes", "5x3"], "--regimes"),
        (["--regimes", "calls", "--quick"], "--regimes"),
        (["--regimes", "calls", "--plot", "x.png"], "--plot"),
        (["--col\nour"], "--col"),
    ],
)
def test_bad_usage(args, flag, capsys) -> None:
    """Exit status 2, one line that names the flag, and nothing on the screen."""
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert flag in err


def test_a_file_that_cannot_be_written_is_found_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.os, "access", lambda path, mode: path != tmp_path)
    assert main(["--json", str(tmp_path / "bench.json")]) == 2
    assert "--json: cannot write" in capsys.readouterr().err


def test_list(capsys) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "512x128256" in out
    assert "torch" in out
    assert "few-classes How near does one thread come" in out


def test_reference_keeps_small_losses() -> None:
    """Formula by hand: two classes, the label leads by 60, loss and gradients are exp(-60)."""
    logits = np.array([[60.0, 0.0], [0.0, 60.0], [-np.inf, 1.0]], np.float32)
    exact = reference(logits, np.array([0, 0, 1]))
    small = np.exp(-60.0)
    np.testing.assert_allclose(exact.losses, [small, 60 + small, 0], rtol=1e-15)
    np.testing.assert_allclose(exact.grad, [[-small, small], [-1, 1], [0, 0]], rtol=1e-15)


def test_worst_ulps() -> None:
    exact = np.array([1.0, 1e-40, np.inf, np.nan])
    value = exact.astype(np.float32)
    assert worst_ulps(value, exact) < 0.5 + 1e-9
    assert worst_ulps(value, np.array([1.0 + 3 * 2.0**-23, 1e-40, np.inf, np.nan])) == 3
    assert worst_ulps(value, np.array([1.0, 1e-40, np.inf, 0.0])) == np.inf
    assert worst_ulps(value, np.array([1.0, 1e-40, 0.0, np.nan])) == np.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds: expected more than 0, 3600 at most, got 0.0"),
        (["--plot", "x.foo"], "--plot: expected .png, .pdf or .svg, got x.foo"),
    ],
)
def test_flags_are_checked_before_anything_is_timed(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
