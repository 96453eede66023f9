"""fastce train and evaluate: what they print and leave, and one line for all that is wrong."""

import errno
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from mnist_files import NAMES, make_set, write_set

import fastce
from fastce import cli
from fastce.mlp import MLPClassifier, download, loss_curve

SMALL = ["--hidden", "8", "--epochs", "2"]
RESULT = r"test loss \d\.\d{4}, test accuracy [01]\.\d{4}"


@pytest.fixture
def data(tmp_path, rng):
    return write_set(tmp_path / "data", make_set(rng))


@pytest.fixture
def run(capsys):
    """run(*argv) gives the exit status, and stdout and stderr as lists of lines."""

    def run(*argv):
        status = cli.main([str(argument) for argument in argv])
        streams = capsys.readouterr()
        return status, streams.out.splitlines(), streams.err.splitlines()

    return run


@pytest.fixture
def refused(run):
    """The command ends with status 2, nothing but one line on stderr, and that line matches."""

    def check(message, *argv):
        status, out, err = run(*argv)
        assert (status, len(err)) == (2, 1), err
        assert re.search(message, err[0]), err[0]
        assert err[0].startswith("fastce")
        return out

    return check


def test_train_prints_and_leaves_what_it_should(tmp_path, data, run):
    out = tmp_path / "new" / "run"
    status, lines, err = run("train", "--data", data, "--out", out, *SMALL)
    assert (status, err) == (0, [])
    # Without matplotlib, one more line tells that the curve was not drawn.
    lines = [line for line in lines if "loss_curve.png" not in line]
    assert len(lines) == 3
    for number, line in enumerate(lines[:2], 1):
        assert re.fullmatch(rf"epoch {number}/2 loss \d\.\d{{4}}, {RESULT}, \d+\.\d\d s", line)
    assert re.fullmatch(RESULT, lines[2])

    assert {path.name for path in out.iterdir()} >= {"model.npz", "metrics.jsonl", "checkpoint.npz"}
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in metrics] == [1, 2]
    assert lines[1].startswith(f"epoch 2/2 loss {metrics[1]['loss']:.4f}")
    loss, accuracy = metrics[1]["test_loss"], metrics[1]["test_accuracy"]
    final = f"test loss {loss:.4f}, test accuracy {accuracy:.4f}"
    assert lines[2] == final

    clf = MLPClassifier.load(out / "model.npz")
    assert [weight.shape for weight in clf.coefs_] == [(35, 8), (8, 10)]
    assert clf.loss_curve_ == [epoch["loss"] for epoch in metrics]
    _, _, X_test, y_test = fastce.mlp.load_mnist(data)
    shown = str(clf.evaluate(X_test, y_test)).splitlines()
    assert shown[0].split() == ["rows", str(len(y_test))]
    assert len(shown) > 10  # a line for each class
    assert run("evaluate", out / "model.npz", "--data", data) == (0, [*shown, final], [])
    for training_file in data.glob("train-*"):
        training_file.unlink()
    assert run("evaluate", out / "model.npz", "--data", data) == (0, [*shown, final], [])


def test_flags_reach_the_classifier(tmp_path, data, run):
    run(
        *["train", "--data", data, "--out", tmp_path / "run", "--hidden", "9,7", "--epochs", "1"],
        *["--batch-size", "50", "--lr", "0.25", "--optimizer", "sgd", "--seed", "3"],
    )
    expected = MLPClassifier(
        (9, 7), max_iter=1, batch_size=50, learning_rate_init=0.25, solver="sgd", random_state=3
    )
    arrays = fastce.mlp.load_mnist(data)
    expected.fit(*arrays[:2])
    trained = MLPClassifier.load(tmp_path / "run/model.npz")
    assert trained.get_params() == expected.get_params()
    assert trained.loss_curve_ == expected.loss_curve_
    for ours, theirs in zip(trained.coefs_, expected.coefs_, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_threads_do_not_change_the_model(tmp_path, data, run):
    before = fastce.get_num_threads()
    models = set()
    try:
        for n in (1, 2):
            run("train", "--data", data, "--out", tmp_path / str(n), "--threads", n, *SMALL)
            assert fastce.get_num_threads() == n
            models.add((tmp_path / str(n) / "model.npz").read_bytes())
    finally:
        fastce.set_num_threads(before)
    assert len(models) == 1


def test_the_embedded_subset_is_the_default(tmp_path, run):
    status, lines, _ = run("train", "--out", tmp_path, "--epochs", 1, "--hidden", 32)
    assert status == 0
    assert float(lines[-1].split()[-1]) > 0.8


def test_the_curve_needs_matplotlib(tmp_path, data, run, monkeypatch):
    argv = ["train", "--data", data, "--out", tmp_path / "run", *SMALL]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, lines, err = run(*argv)
    assert (status, err) == (0, [])
    assert sum("matplotlib" in line for line in lines) == 1
    assert re.fullmatch(RESULT, lines[-1])
    assert not (tmp_path / "run/loss_curve.png").exists()


def test_the_curve_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in files:
        assert loss_curve.save_loss_curve(path, [2.0, 1.0, 0.5], [2.1, 1.1, 0.7])
    first, second = (path.read_bytes() for path in files)
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_a_bar_on_a_terminal(tmp_path, data, run, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True, raising=False)
    status, lines, err = run("train", "--data", data, "--out", tmp_path / "run", *SMALL)
    assert status == 0
    assert "epoch 1/2" in "".join(err)
    assert len(lines) == 3

    monkeypatch.setitem(sys.modules, "tqdm", None)
    status, lines, err = run("train", "--data", data, "--out", tmp_path / "run", *SMALL)
    assert (status, len(lines), err) == (0, 3, [])


def test_a_path_that_is_no_text(tmp_path, data, run):
    out = tmp_path / os.fsdecode(b"\xff")
    status, lines, err = run("train", "--data", data, "--out", out, "--resume", *SMALL)
    assert (status, err) == (0, [])
    assert r"\udcff" in lines[0]


def test_download_trains_on_the_cache(tmp_path, data, run, monkeypatch):
    monkeypatch.setattr(download, "download_mnist", lambda say: data)
    assert run("train", "--download", "--out", tmp_path / "run", *SMALL)[0] == 0
    model = tmp_path / "run/model.npz"
    assert run("evaluate", "--download", model)[0] == 0

    def unreachable(say):
        raise OSError("--download: no mirror gave x")

    monkeypatch.setattr(download, "download_mnist", unreachable)
    assert run("train", "--download") == (2, [], ["fastce train: --download: no mirror gave x"])


# What is wrong


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--epochs", "-3"],
        ["--epochs", "1.5"],
        ["--epochs", "9" * 5000],
        ["--batch-size", "0"],
        ["--hidden", "0"],
        ["--hidden", "128,"],
        ["--hidden", "128,-1"],
        ["--hidden", "many"],
        ["--hidden", "1000000000000"],
        ["--hidden", "9" * 30],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--lr", "0"],
        ["--lr", "-0.1"],
        ["--lr", "fast"],
        ["--lr", "1e300"],
        ["--optimizer", "lbfgs"],
        ["--seed", "-1"],
        ["--seed", "a\nb"],
        ["--seed", str(2**128)],
        ["--threads", "0"],
        ["--threads", "two"],
        ["--out"],
        ["--nonsense"],
        ["--epoch", "3"],  # no abbreviations: they would bind later flags
        ["--download", "--data"],
    ],
    ids=lambda flags: " ".join(flags)[:30],
)
def test_bad_flags_are_named(tmp_path, data, refused, flags):
    refused(re.escape(flags[0]), "train", "--data", data, "--out", tmp_path / "run", *flags)


@pytest.mark.parametrize("command", ["train", "evaluate model.npz"])
def test_an_empty_folder_of_data(tmp_path, monkeypatch, run, refused, command):
    monkeypatch.chdir(tmp_path)
    MLPClassifier(max_iter=1).fit(np.eye(10), np.arange(10)).save("model.npz")
    refused("--data: expected a folder, got ''", *command.split(), "--data", "")


def test_a_terminal_that_lacks_a_letter_of_a_path(tmp_path, data):
    done = subprocess.run(
        [sys.executable, "-m", "fastce", "train", "--data", data, *SMALL, "--out", "r\xfcn"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "r\xfcn" / "model.npz").exists()


@pytest.mark.parametrize("argv", [[], ["fly"], ["train", "me"], ["evaluate"], ["info", "--x"]])
def test_bad_usage(refused, argv):
    refused(argv[-1] if argv[1:] else "command|model", *argv)


def test_data_and_download_exclude_each_other(refused, data):
    refused("--download.*--data", "train", "--data", data, "--download")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (NAMES[0], lambda data: data[:-1]),
        (NAMES[0], lambda data: data[:20] + b"\0" + data[20:]),
        (NAMES[1], lambda data: data[:11] + b"\x0c" + data[12:]),
        (NAMES[2], lambda data: b"not IDX"),
        (NAMES[3], lambda data: b"\x1f\x8b" + data),
        (NAMES[3], lambda data: None),
    ],
)
def test_bad_data_are_named(tmp_path, data, refused, name, change):
    changed = change((data / name).read_bytes())
    (data / name).unlink()
    if changed is not None:
        (data / name).write_bytes(changed)
    refused(re.escape(str(data / name)), "train", "--data", data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_data_there(tmp_path, data, refused, monkeypatch):
    monkeypatch.chdir(data)
    refused("expected a folder, got ''", "train", "--data", "", "--out", tmp_path)  # not data
    refused("nowhere: No such file", "train", "--data", tmp_path / "nowhere")
    refused(NAMES[0], "train", "--data", tmp_path)


def test_out_that_cannot_be(tmp_path, data, refused):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        refused(f"--out {out}: ", "train", "--data", data, "--out", out, *SMALL)
    refused("--out: expected a folder", "train", "--data", data, "--out", "", *SMALL)
    (tmp_path / "run" / "checkpoint.npz").mkdir(parents=True)
    refused("checkpoint.npz: Is a directory", "train", "--data", data, "--out", tmp_path / "run")


def test_a_full_disk_is_named(tmp_path, data, refused, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused("checkpoint.npz: No space left", "train", "--data", data, "--out", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("most", "name"), [(2000, "checkpoint.npz"), (12_000, "metrics.jsonl")])
def test_a_file_that_cannot_grow_is_named(tmp_path, data, python, most, name):
    """A line is four times an epoch's numbers in the checkpoint: the metrics outgrow it."""
    pytest.importorskip("resource")
    argv = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--hidden", "8"]
    process = python(
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
        f"from fastce.cli import main; sys.exit(main({argv} + ['--epochs', '500']))"
    )
    assert process.returncode == 2
    assert process.stderr == f"fastce train: {tmp_path / 'run' / name}: File too large\n"


def test_evaluate_names_the_file(tmp_path, data, rng, run, refused):
    model = tmp_path / "run" / "model.npz"
    refused("model.npz: No such file", "evaluate", model)
    run("train", "--data", data, "--out", tmp_path / "run", *SMALL)
    other = write_set(tmp_path / "other", make_set(rng, shape=(6, 6)))
    refused("model.npz: not a model for these images", "evaluate", model, "--data", other)
    model.write_bytes(model.read_bytes()[:-100])
    refused("model.npz: not a readable .npz file", "evaluate", model, "--data", data)
    refused("checkpoint.npz: not a model", "evaluate", tmp_path / "run" / "checkpoint.npz")
    refused("expected a regular file", "evaluate", tmp_path)


# The other commands, and the process around them


def test_version_info_and_bench(run, monkeypatch):
    assert run("--version") == (0, [f"fastce {fastce.__version__}"], [])
    status, lines, _ = run("info")
    assert status == 0
    assert lines
    status, lines, _ = run("--help")
    assert {"train", "evaluate", "bench", "info"} <= set(" ".join(lines).split())
    benchmark = pytest.importorskip("fastce.benchmark")
    monkeypatch.setattr(benchmark, "main", lambda argv: print(argv) or 5)
    assert run("bench", "--help", "x") == (5, ["['--help', 'x']"], [])


def command(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "fastce", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_python_m_fastce(tmp_path, data):
    process = command("train", "--data", data, *SMALL, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert re.fullmatch(RESULT, out.splitlines()[-1])
    assert (tmp_path / "runs/mnist/model.npz").exists()


def test_a_process_fails_with_one_line(tmp_path):
    process = command("train", "--data", os.fsencode(tmp_path).decode() + "/\udcff\n")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert "Traceback" not in err


def test_start_up_imports_nothing_heavy(python):
    heavy = {"fastce.mlp", "matplotlib", "tqdm", "urllib.request", "fastce.benchmark"}
    code = f"import sys, fastce.cli; print({heavy!r} & set(sys.modules))"
    assert python(code).stdout == "set()\n"


def endless(tmp_path, data):
    """A run that is in its epochs, and will be for hours."""
    process = command("train", "--data", data, "--epochs", 10**6, "--out", tmp_path / "run")
    assert process.stdout.readline().startswith("epoch 1/")
    return process


def test_interrupt(tmp_path, data, run):
    process = endless(tmp_path, data)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "fastce train: interrupted\n")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoint.npz", "metrics.jsonl"}


def test_a_closed_pipe_ends_the_run_quietly(tmp_path, data):
    process = endless(tmp_path, data)
    process.stdout.close()
    process.wait(timeout=60)
    assert (process.returncode, process.stderr.read()) == (141, "")
    process.stderr.close()


def test_a_closed_stderr_and_a_full_output(tmp_path, data, run, refused, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "_say", full)
    refused("output: No space left", "evaluate", tmp_path / "run" / "model.npz", "--data", data)


@pytest.mark.parametrize("sizes", ["abc", "", "10,,5"])
def test_hidden_layers_that_are_no_numbers(sizes, refused):
    refused(f"--hidden: expected N or N,N,..., got {sizes!r}", "train", "--hidden", sizes)
