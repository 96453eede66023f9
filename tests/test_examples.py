"""The scripts in examples/ run as they stand, and so does bench/training.py."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from mnist_files import make_set, write_set

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example_runs(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    accuracies = re.findall(r"accuracy ([\d.]+)", capsys.readouterr().out)
    assert float(accuracies[-1]) > 0.85


def test_training_benchmark_runs(tmp_path, rng, monkeypatch, capsys):
    """On images that are learnt at once, and without the peers, which are slow to load."""
    bench = runpy.run_path(str(ROOT / "bench" / "training.py"))
    monkeypatch.setitem(bench["main"].__globals__, "PEERS", {})
    data = write_set(tmp_path / "data", make_set(rng, n_train=2000))
    argv = ["training.py", "--data", data, "--rounds", "8", "--json", tmp_path / "table.json"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in argv])
    assert bench["main"]() == 0
    rows = json.loads((tmp_path / "table.json").read_text())["epochs"]
    assert rows.keys() == {"fastce", "bare products"}
    assert rows["fastce"]["ratio"]["median"] == 1
    assert "bare products" in capsys.readouterr().out
