"""A training run killed at any moment and resumed ends with the bytes of one that never stopped."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from mnist_files import make_set, write_set

from fastce import cli
from fastce.mlp import files as files_of_a_run

EPOCHS = 3


def train(data, out, *flags, epochs=EPOCHS):
    return cli.main(
        [
            "train",
            "--data",
            str(data),
            "--out",
            str(out),
            "--hidden",
            "8",
            "--epochs",
            str(epochs),
            *map(str, flags),
        ]
    )


@pytest.fixture(scope="module", autouse=True)
def no_curve():
    """Without matplotlib, which takes longer than all the rest; test_train_command.py draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(7)
    return write_set(tmp_path_factory.mktemp("mnist") / "data", make_set(rng))


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, data):
    """The files of whole runs, by solver: name -> bytes."""
    results = {}
    for solver in ("adam", "sgd"):
        out = tmp_path_factory.mktemp(solver)
        assert train(data, out, "--optimizer", solver) == 0
        results[solver] = {path.name: path.read_bytes() for path in out.iterdir()}
    return results


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("stops", [[1], [2], [1, 2], [3]])
def test_in_pieces_as_in_one(tmp_path, data, never_stopped, capsys, solver, stops):
    for epochs in [*stops, EPOCHS]:
        assert train(data, tmp_path, "--optimizer", solver, "--resume", epochs=epochs) == 0
    assert files(tmp_path) == never_stopped[solver]


def test_a_finished_run_prints_its_result_and_trains_no_more(tmp_path, data, capsys, monkeypatch):
    train(data, tmp_path)
    result = capsys.readouterr().out.splitlines()[-1]
    before = files(tmp_path)
    (tmp_path / "model.npz").unlink()
    monkeypatch.setattr("fastce.mlp.MLPClassifier._train_epoch", None)
    assert train(data, tmp_path, "--resume") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("resumed after epoch 3", result)
    assert not any(line.startswith("epoch") for line in lines)
    assert files(tmp_path) == before


def test_without_resume_a_run_starts_anew(tmp_path, data, never_stopped, capsys):
    train(data, tmp_path, "--seed", 5)
    train(data, tmp_path)
    assert files(tmp_path) == never_stopped["adam"]


def test_a_run_that_starts_anew_leaves_nothing_of_the_old_one(tmp_path, data, capsys):
    train(data, tmp_path)
    (tmp_path / "loss_curve.png").write_bytes(b"of the old run")
    assert train(data, tmp_path, "--lr", "1e38", "--optimizer", "sgd") == 2
    assert set(files(tmp_path)) == {"checkpoint.npz", "metrics.jsonl"}


def test_two_runs_do_not_share_a_folder(tmp_path, data, never_stopped, capsys):
    with files_of_a_run.alone(tmp_path, "--out"):
        assert train(data, tmp_path) == 2
        assert capsys.readouterr().err == (
            f"fastce train: --out {tmp_path}: another run is using it\n"
        )
        assert files(tmp_path) == {}
    assert train(data, tmp_path) == 0
    assert files(tmp_path) == never_stopped["adam"]


def test_resume_without_a_checkpoint_starts(tmp_path, data, never_stopped, capsys):
    assert train(data, tmp_path / "new", "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out.splitlines()[0]
    assert files(tmp_path / "new") == never_stopped["adam"]


# SIGKILL. Every call that makes something durable is a moment; around them nothing changes on disk.

KILLER = """
import os, signal, sys
moments = int(sys.argv[1])
def dying(call):
    def wrapper(*arguments):
        global moments
        moments -= 1
        if moments == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments)
        moments -= 1
        if moments == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper
os.fsync, os.replace, os.mkdir = map(dying, (os.fsync, os.replace, os.mkdir))
sys.modules["matplotlib.figure"] = None
from fastce.cli import main
sys.exit(main(sys.argv[2:]))
"""


def killed(moment, data, out, *flags):
    """Run the command in a process that kills itself at the given moment.

    Returns the lines that it printed if it died, else None.
    """
    argv = ["train", "--data", data, "--out", out, "--hidden", "8", "--epochs", EPOCHS, *flags]
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLER, str(moment), *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    return process.stdout.splitlines() if process.returncode else None


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("moment", [1, 3, 4, 5, 8, 11, 15, 17, 20, 27, 33, 38])
def test_killed_once_and_resumed(tmp_path, data, never_stopped, moment):
    out = tmp_path / "out"
    lines = killed(moment, data, out)
    # Each line is out before the next epoch: epoch n ends with moment 14 + 6 n.
    assert len(lines) == max(0, (moment - 15) // 6)
    # Whatever there is, is whole.
    for path in out.glob("*.npz"):
        with np.load(path) as arrays:
            dict(arrays)
    assert train(data, out, "--resume") == 0
    assert files(out) == never_stopped["adam"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_in_the_first_epoch_where_an_older_run_was(tmp_path, data, never_stopped):
    """Its checkpoint must not be taken for that of the run that was killed."""
    train(data, tmp_path, "--seed", 5)
    assert killed(14, data, tmp_path) is not None
    assert train(data, tmp_path, "--resume") == 0
    assert files(tmp_path) == never_stopped["adam"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_again_and_again(tmp_path, data, never_stopped):
    """The start of a resumed run has 13 moments; each run here gets a little further."""
    out = tmp_path / "out"
    deaths = 0
    while killed(16 + deaths, data, out, "--resume") is not None:
        deaths += 1
    assert deaths >= 2
    assert files(out) == never_stopped["adam"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("lines", [1, 2])
def test_killed_from_outside(tmp_path, data, never_stopped, lines):
    """In the middle of an epoch, most likely: at any rate after so many lines."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fastce",
            "train",
            "--data",
            data,
            "--out",
            tmp_path / "out",
            "--hidden",
            "8",
            "--epochs",
            str(EPOCHS),
        ],
        stdout=subprocess.PIPE,
    )
    for _ in range(lines):
        process.stdout.readline()
    process.kill()
    process.wait(60)
    process.stdout.close()
    (tmp_path / "out/loss_curve.png").unlink(missing_ok=True)  # if it was too late
    assert train(data, tmp_path / "out", "--resume") == 0
    assert files(tmp_path / "out") == never_stopped["adam"]


def test_lost_and_torn_metrics_come_back(tmp_path, data, never_stopped):
    train(data, tmp_path, epochs=2)
    metrics = tmp_path / "metrics.jsonl"
    for text in ("", '{"epoch": 1, "lo', metrics.read_text() * 2):
        metrics.write_text(text)
        train(data, tmp_path, "--resume", epochs=2)
        assert [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()] == [1, 2]


# What does not fit


@pytest.fixture
def refused(tmp_path, data, capsys):
    """Resuming ends with status 2 and one line that matches; no file changes."""

    def check(message, *flags, data=data, epochs=EPOCHS):
        before = files(tmp_path)
        capsys.readouterr()
        assert train(data, tmp_path, "--resume", *flags, epochs=epochs) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert re.search(message, err), err
        assert files(tmp_path) == before

    return check


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--hidden", "9"),
        ("--hidden", "8,8"),
        ("--batch-size", "32"),
        ("--lr", "0.002"),
        ("--optimizer", "sgd"),
        ("--seed", "1"),
    ],
)
def test_another_setting_is_named(tmp_path, data, refused, flag, value):
    train(data, tmp_path, epochs=1)
    refused(f"{flag}: the run in .*checkpoint.npz was started with ", flag, value)


def test_fewer_epochs_than_there_are(tmp_path, data, refused):
    train(data, tmp_path)
    refused("--epochs: .*checkpoint.npz has 3 already, more than 2", epochs=2)


def test_other_data_are_named(tmp_path, data, refused, rng):
    train(data, tmp_path, epochs=1)
    arrays = make_set(rng)
    refused("--data: the run", data=write_set(tmp_path.parent / f"{tmp_path.name}-other", arrays))


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_cut_checkpoint_is_named(tmp_path, data, refused, keep):
    train(data, tmp_path, epochs=1)
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:keep])
    refused("checkpoint.npz: not a readable .npz file: ")


def test_a_flipped_bit_is_named(tmp_path, data, refused):
    train(data, tmp_path, epochs=1)
    path = tmp_path / "checkpoint.npz"
    with np.load(path) as arrays:
        params = arrays["params"].tobytes()
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(params) + 100] ^= 1
    path.write_bytes(damaged)
    refused("checkpoint.npz: not a readable .npz file: .*CRC")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("format", np.array("fastce-checkpoint-0")),
        ("settings", np.array("[]")),
        ("settings", np.array("{}")),
        ("settings", np.array("{")),
        ("params", np.zeros(3, np.float32)),
        ("params", np.array(3, np.float32)),
        ("moments", np.full((2, 378), np.nan, np.float32)),
        ("moments", np.full((2, 378), -1, np.float32)),
        ("moments", None),
        ("history", np.zeros((1, 2))),
        ("history", np.zeros(())),
        ("history", None),
    ],
)
def test_an_impossible_checkpoint_is_named(tmp_path, data, refused, name, array):
    train(data, tmp_path, epochs=1)
    path = tmp_path / "checkpoint.npz"
    with np.load(path) as arrays:
        arrays = dict(arrays)
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with open(path, "wb") as file:
        np.savez(file, **arrays)
    refused("checkpoint.npz: not a checkpoint of fastce: ")


def test_a_model_is_no_checkpoint(tmp_path, data, refused):
    train(data, tmp_path)
    os.replace(tmp_path / "model.npz", tmp_path / "checkpoint.npz")
    refused("checkpoint.npz: not a checkpoint of fastce: ")


def test_leftovers_of_killed_runs_are_swept(tmp_path, data, never_stopped):
    (tmp_path / ".checkpoint.npz.123.tmp").write_bytes(b"half")
    (tmp_path / ".mine.tmp").write_bytes(b"not fastce's")
    train(data, tmp_path, "--resume")
    assert files(tmp_path).keys() - never_stopped["adam"].keys() == {".mine.tmp"}
