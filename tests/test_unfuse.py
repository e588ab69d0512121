"""The package as a whole: names, layers, imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unfuse
from tests.contract.figures import circles, imports

SOURCE = Path(unfuse.__file__).parent
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

LAYERS = [
    {
        "_version",
        "unavailable",
        "errors",
        "extras",
        "stages",
        "cache",
        "checksum",
        "features",
        "feature_store",
        "compiled",
        "decoders",
    },
    {"events"},
    {"samples", "runs"},
    {"measure"},
    {"models", "engines", "testing"},
    {"adapters", "staged_model"},
    {"pipeline", "loading"},
    {"report"},
    {"protocols", "throughput"},
    {"verification"},
    {"api"},
    {"serving"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
    return sorted(SOURCE.rglob("*.py"))


def part(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def test_public_names():
    assert unfuse.__all__ == sorted(unfuse.__all__)
    for name in unfuse.__all__:
        assert getattr(unfuse, name) is not None
    assert set(unfuse.__all__) == {
        "Features", "Generation", "Sample", "Sampling", "UnfuseError", "bench", "load", "run", "verify",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="nothing"):
        _ = unfuse.nothing


def test_import_does_nothing():
    code = (
        "import sys, unfuse\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'rich', 'h5py', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["unfuse.report", "unfuse.runs", "unfuse.events", "unfuse.samples"])
def test_no_torch_where_none_is_needed(package):
    subprocess.run([sys.executable, "-c", f"import sys, {package}; assert 'torch' not in sys.modules"], check=True)


def test_no_command_waits_for_statistics():
    """They take a second to load, which ``unfuse --help`` has no use for."""
    code = "import sys, unfuse.cli; assert not {'torch', 'scipy.stats', 'altair'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_go_downward():
    """At the top of a module; what is imported inside a function loads late, and may."""
    wrong = []
    for path in modules():
        here = part(path)
        if here == "__init__":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unfuse."):
                there = node.module.split(".")[1]
                if there != here and RANK[there] > RANK[here]:
                    wrong.append(f"{path.relative_to(SOURCE)} imports {node.module}")
    assert not wrong


def test_no_modules_import_each_other():
    """Not within functions and not for types either."""
    trees = {path: ast.parse(path.read_text()) for path in modules()}
    assert circles(imports(SOURCE, trees)) == []


def test_every_part_has_a_layer():
    assert {part(path) for path in modules()} - {"__init__"} == set(RANK)


def test_modules_stay_small():
    large = {str(p.relative_to(SOURCE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not large


def test_test_files_are_named_after_what_they_hold():
    """tests/x/test_y.py holds module or package y of x; several modules together are held in a folder integration."""
    roots = {"training": ROOT, "benchmarks": ROOT}
    kernels = {path.stem for path in SOURCE.rglob("*.cu")}
    names = kernels | {path.stem for path in modules()} | {path.parent.name for path in modules()}
    wrong = []
    for path in TESTS.rglob("test_*.py"):
        folder, name = path.parent.relative_to(TESTS), path.stem.removeprefix("test_")
        if {"contract", "docs", "integration", "perfetto"} & set(folder.parts):
            continue
        place = roots.get(str(folder), SOURCE) / folder
        if folder.name == "cuda":
            right = name in names
        else:
            right = (place / f"{name}.py").is_file() or (place / name).is_dir() or place.name == name
        if not right:
            wrong.append(str(path.relative_to(TESTS)))
    assert not wrong


def test_examples_of_properties_follow_the_profile():
    """A test that sets its number of examples itself would not be searched widely."""
    others = {path for path in TESTS.rglob("*.py") if path.name not in {"examples.py", Path(__file__).name}}
    assert not [str(path) for path in others if "settings(max_examples" in path.read_text()]


def test_every_module_says_what_it_is():
    assert not [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]


def test_error_messages_are_one_printable_line():
    error = unfuse.UnfuseError("a\nb\x1b[31m", found="c", expected="d", fix="do e")
    assert str(error) == "a b [31m: found c, expected d. Do e"
