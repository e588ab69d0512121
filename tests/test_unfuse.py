"""The package as a whole: names, layers, imports, size and structure of code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unfuse
from tests.contract.figures import (
    LONGEST_FUNCTION,
    circles,
    functions_of,
    imports,
    is_idle_read,
    is_string_or_result,
    length,
    parse,
    repeated_classes,
)

SOURCE = Path(unfuse.__file__).parent
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

LAYERS = [
    {
        "_version",
        "atomic_files",
        "unavailable",
        "finite",
        "errors",
        "locks",
        "extras",
        "stages",
        "text_encoding",
        "user_cache",
        "checksum",
        "features",
        "compiled",
        "speculation",
        "decoders",
        "processes",
    },
    {"events"},
    {"samples", "records"},
    {"measure"},
    {"models", "engines", "testing"},
    {"adapters", "engine_choice", "staged_model"},
    {"drafters"},
    {"pipeline", "loading", "feature_store", "scheduler"},
    {"report"},
    {"benchmarking", "batch_inference"},
    {"verification"},
    {"api"},
    {"serving"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
DESCRIBES_ALL_FILES = "unfuse.report.schemas"
"""The only module that imports upward."""


def modules():
    return sorted(SOURCE.rglob("*.py"))


def rank(module):
    return RANK[module.split(".")[1]]


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


@pytest.mark.parametrize("package", ["unfuse.report", "unfuse.records", "unfuse.events", "unfuse.samples"])
def test_packages_without_torch(package):
    subprocess.run([sys.executable, "-c", f"import sys, {package}; assert 'torch' not in sys.modules"], check=True)


def test_commands_do_not_load_statistics():
    """They take a second to load, and ``unfuse --help`` does not need them."""
    code = "import sys, unfuse.cli; assert not {'torch', 'scipy.stats', 'altair'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_go_downward():
    """Also within functions and for types."""
    upward = {
        f"{importer} imports {imported}"
        for importer, names in imports(SOURCE, parse(SOURCE)).items()
        for imported in names
        if "." in importer and "." in imported and rank(imported) > rank(importer) and importer != DESCRIBES_ALL_FILES
    }
    assert upward == set()


def test_no_modules_import_each_other():
    """Neither within functions nor for types."""
    assert circles(imports(SOURCE, parse(SOURCE))) == []


def test_every_part_has_a_layer():
    assert {part(path) for path in modules()} - {"__init__"} == set(RANK)


def test_modules_stay_small():
    large = {str(p.relative_to(SOURCE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not large


def test_functions_stay_short():
    """Kernels are exempt: their compiler takes one function."""
    kernels = SOURCE / "engines" / "graphed" / "kernels"
    found = {
        f"{path.relative_to(ROOT)} {function.name}"
        for folder in (SOURCE, ROOT / "training", ROOT / "benchmarks", ROOT / "docs" / "_ext")
        for path, tree in parse(folder).items()
        if not path.is_relative_to(kernels)
        for function in functions_of(tree)
        if length(function) > LONGEST_FUNCTION
    }
    assert found == set()


def test_a_public_class_name_is_used_once():
    assert repeated_classes(parse(SOURCE)) == {}


def test_a_reason_is_no_string():
    """A result that may be missing is ``X | Unavailable``; no caller can mistake it for a result."""
    assert _modules_with(is_string_or_result) == set()


def test_no_property_is_read_for_its_error():
    """A check is a method with a name."""
    assert _modules_with(is_idle_read) == set()


def _modules_with(holds):
    trees = parse(SOURCE).items()
    return {str(path.relative_to(SOURCE)) for path, tree in trees if any(map(holds, ast.walk(tree)))}


def test_test_files_are_named_after_the_tested_module():
    """tests/x/test_y.py tests module or package y of x; a folder integration tests several modules together."""
    roots = {"training": ROOT, "benchmarks": ROOT}
    kernels = {path.stem for path in SOURCE.rglob("*.cu")}
    names = kernels | {path.stem for path in modules()} | {path.parent.name for path in modules()}
    wrong = []
    for path in TESTS.rglob("test_*.py"):
        folder, name = path.parent.relative_to(TESTS), path.stem.removeprefix("test_")
        if {"contract", "docs", "integration", "perfetto"} & set(folder.parts):
            continue
        tested = roots.get(str(folder), SOURCE) / folder
        if folder.name == "cuda":
            right = name in names
        else:
            right = (tested / f"{name}.py").is_file() or (tested / name).is_dir() or tested.name == name
        if not right:
            wrong.append(str(path.relative_to(TESTS)))
    assert not wrong


def test_examples_of_properties_follow_the_profile():
    """A test that sets its number of examples itself would escape a wide search."""
    others = {path for path in TESTS.rglob("*.py") if path.name not in {"examples.py", Path(__file__).name}}
    assert not [str(path) for path in others if "settings(max_examples" in path.read_text()]


def test_every_module_has_a_docstring():
    assert not [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]


def test_error_messages_are_one_printable_line():
    error = unfuse.UnfuseError("a\nb\x1b[31m", found="c", expected="d", fix="do e")
    assert str(error) == "a b [31m: found c, expected d. Do e"
