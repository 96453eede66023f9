"""What an installation is: its metadata, the files it needs, and NumPy as the one dependency.

How it is built and installed, which takes minutes, is shown by .ci/run.
"""

import ast
import importlib
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fastce

PACKAGE = Path(fastce.__file__).parent
ROOT = Path(__file__).parent.parent


def test_version_is_that_of_the_metadata():
    assert fastce.__version__ == metadata.version("fastce")
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastce.__version__)
    assert f"[{fastce.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_numpy_is_the_only_requirement():
    requirements = metadata.requires("fastce")
    assert [r for r in requirements if "extra ==" not in r] == ["numpy>=2.0"]


def test_the_command_is_installed():
    (script,) = metadata.entry_points(group="console_scripts", name="fastce")
    assert callable(script.load())


def test_what_is_used_at_run_time_is_installed():
    for name in ("py.typed", "_kernel.pyi"):
        assert (PACKAGE / name).is_file()
    assert len(list((PACKAGE / "mlp" / "data").glob("*-ubyte.gz"))) == 4
    assert (PACKAGE / "mlp" / "data" / "README.md").is_file()  # the licence of the images


def test_the_stub_names_what_the_library_has():
    """Arguments too; .ci/run has mypy's stubtest look at the types as well."""
    stub = {
        node.name: [argument.arg for argument in node.args.args]
        for node in ast.parse((PACKAGE / "_kernel.pyi").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    functions = {
        name: list(function.__code__.co_varnames[: function.__code__.co_argcount])
        for name, function in vars(fastce._kernel).items()
        if type(function).__name__ == "cython_function_or_method"
    }
    assert stub == functions


@pytest.mark.parametrize("name", ["fastce", "fastce.mlp"])
def test_public_names_are_listed_and_sorted(name):
    module = importlib.import_module(name)
    listed = module.__all__
    assert listed == sorted(listed)
    for public in listed:
        assert getattr(module, public).__module__.startswith("fastce.")
    hidden = {public for public in vars(module) if not public.startswith("_")} - set(listed)
    for public in hidden:
        assert type(getattr(module, public)).__name__ == "module", f"{public} is not in __all__"


def test_the_unbuilt_sources_say_what_to_do(tmp_path):
    """Python finds them first when it is started in the repository's folder.

    Without site-packages (-S), where an editable installation would find the library elsewhere.
    """
    shutil.copytree(PACKAGE, tmp_path / "fastce", ignore=shutil.ignore_patterns("*.so", "data"))
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fastce"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, tmp_path], capture_output=True, text=True, timeout=60
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: fastce is not compiled")
    assert "pip install -e ." in last
