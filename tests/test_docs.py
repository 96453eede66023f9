"""What is written is true: examples run, commands and flags exist, links lead somewhere."""

import doctest
import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import fastce
import fastce.mlp
from fastce.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastce.__path__, "fastce.")
    if not module.name.endswith("__main__")  # runs the command line
)


def is_tuple(public):
    return inspect.isclass(public) and issubclass(public, tuple)


@pytest.mark.parametrize("name", ["fastce", *MODULES])
def test_examples_of_docstrings_run(name):
    module = importlib.import_module(name)
    own = [public for public in vars(module).values() if getattr(public, "__module__", "") == name]
    written = sum((public.__doc__ or "").count(">>> ") for public in own)
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted >= written  # doctest looks into compiled modules, too


@pytest.mark.parametrize("module", ["fastce", "fastce.mlp"])
def test_everything_public_has_an_example(module):
    """But for the tuples that functions return: those are in the functions' examples."""
    module = importlib.import_module(module)
    for name in module.__all__:
        public = getattr(module, name)
        if not is_tuple(public):
            assert ">>>" in inspect.getdoc(public), f"{name} has no example"


def test_example_of_the_readme_runs(capsys):
    """It prints what the comments beside its prints say."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)


def test_commands_of_the_readme_are_lines_of_their_own():
    """People, and .ci/run, take them as they stand; the extras that they ask for exist."""
    lines = (ROOT / "README.md").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, command in [("train", "fastce train"), ("test", "pytest")]:
        assert lines.count(f'    pip install ".[{extra}]" && {command}') == 1
        assert extra in project["optional-dependencies"]
    assert "fastce" in project["scripts"]


def test_flags_that_are_written_exist(capsys):
    """Those of every `fastce COMMAND --flag`, on any page."""
    found = set()
    for page in PAGES:
        for command, rest in re.findall(r"\bfastce (train|evaluate|bench) (.*)", page.read_text()):
            found |= {(command, flag) for flag in re.findall(r"--[a-z-]+", rest)}
    assert len(found) > 5
    for command, flag in sorted(found):
        main([command, "--help"])
        assert re.search(rf"{flag}\b", capsys.readouterr().out), f"fastce {command} has no {flag}"


def test_variables_of_the_environment_are_written_down():
    """Every one that the package or its build reads, and no other, is in the README's table."""
    sources = [ROOT / "setup.py", *(ROOT / "fastce").rglob("*.py")]
    read = {
        name
        for source in sources
        for name in re.findall(r"""["'](FASTCE_[A-Z_]+)["']""", source.read_text())
        if name != "FASTCE_ISA" or source.name != "setup.py"  # a macro there
    }
    readme = (ROOT / "README.md").read_text()
    table = set(re.findall(r"^\| `(FASTCE_[A-Z_]+)`", readme, re.MULTILINE))
    assert table == read


def test_everything_public_is_in_the_readme():
    """But for what a function's own documentation tells: gradients, and the tuples it returns."""
    readme = (ROOT / "README.md").read_text()
    for module in (fastce, fastce.mlp):
        for name in module.__all__:
            public = getattr(module, name)
            if not name.endswith("_with_grad") and not is_tuple(public):
                assert f"`{name}`" in readme, f"README.md does not name {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith(("https://", "http://")):
            assert (page.parent / target).exists(), f"no {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(page):
    """Paths in code font or in code blocks that start with a folder of the repository."""
    folders = "csrc|fastce|tests|bench|examples|tools|docs|.ci"
    named = re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./]*\w", page.read_text())
    for path in named:
        assert (ROOT / path).exists(), f"no {path}"


def test_every_c_file_is_on_the_page():
    page = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "csrc").iterdir():
        assert path.name in page, f"docs/architecture.md does not name {path.name}"


def test_every_folder_is_on_the_map():
    readme = (ROOT / "README.md").read_text()
    folders = {
        path.parent for path in ROOT.glob("[a-z]*/*.*") if path.suffix in (".py", ".c", ".md")
    }
    for folder in folders:
        assert f"\n    {folder.name}/ " in readme, f"the map has no {folder.name}/"


@pytest.mark.parametrize(
    "path",
    sorted(
        path.relative_to(ROOT)
        for folder in ("csrc", "fastce", "tests", "bench", "examples", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".c", ".h", ".py", ".pyx")
        and path.name not in ("_kernel.c", "_cross_entropy.c")  # what Cython made
    ),
    ids=str,
)
def test_every_file_says_what_it_is(path):
    """In its first lines, in a comment or a docstring."""
    text = re.sub(r"^# cython:.*\n", "", (ROOT / path).read_text(), flags=re.MULTILINE)
    assert text.startswith(('"""', "/* ", "#!")), f"{path} starts with {text[:40]!r}"
