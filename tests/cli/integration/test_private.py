"""Files and folders are their owner's alone, whatever the umask is; reports and exports follow it."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

import pytest

import unfuse
from tests.samples.test_build import write_sequence
from unfuse.cli import run

PUBLIC = {"report.md", "report.html", "table.csv", "sheet.png"}
SOURCE = Path(unfuse.__file__).parent
FOREIGN = {"models/eventgpt/tokenizer.py", "models/eventgpt/processing_eventgpt.py", "report/schemas.py"}
"""Modules that write what transformers or a developer asked for."""
ALLOWED = ("folder.write_text(", "_CLEAR.write_text(")
"""Calls of ``RunFolder``, and a file of the kernel's."""
BENCH = ["--max-samples", "2", "--output-length", "2", "--num-warmups", "1", "--balance-seconds", "0"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory and a cache with the script of the reports, which takes seconds to make."""
    cached = Path(os.environ["UNFUSE_CACHE"]) / "vega"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNFUSE_CACHE", str(tmp_path / "cache"))
    if cached.is_dir():
        shutil.copytree(cached, tmp_path / "cache" / "vega")
        for path in (tmp_path / "cache", tmp_path / "cache" / "vega", *(tmp_path / "cache" / "vega").iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o600)
    return tmp_path


def modes(folder):
    return {path.relative_to(folder): path.stat().st_mode & 0o777 for path in folder.rglob("*") if not path.is_socket()}


@pytest.mark.parametrize("umask", [0, 0o027])
def test_every_verb(home, umask, monkeypatch):
    write_sequence(home / "source")
    foreign = set(modes(home))
    before = os.umask(umask)
    try:
        device = ["--device", "cpu"]
        assert run(["dataset", "build", "source", "made/set", "--window", "200ms", "--workers", "1"]) == 0
        assert run(["dataset", "info", "made/set", "--picture", "sheet.png"]) == 0
        assert run(["run", "--max-samples", "1", "--max-new-tokens", "2", "--store", "deep/store", *device]) == 0
        assert run(["bench", "demo", *BENCH, *device, "--output", "runs/one"]) in (0, 1)
        assert run(["compare", "runs/one", "--save-baseline", "main"]) in (0, 2)
        assert run(["export", "runs/one", "--output", "table.csv"]) == 0
        assert run(["report", "runs/one"]) == 0
    finally:
        os.umask(before)
    found = {path: mode for path, mode in modes(home).items() if path not in foreign}
    assert len(found) > 40
    for path, mode in found.items():
        if path.name in PUBLIC:
            assert mode == 0o666 & ~umask, path
        else:
            assert mode == (0o700 if (home / path).is_dir() else 0o600), path
    assert {path.name for path in found} >= PUBLIC


def test_no_module_makes_files_or_folders_of_its_own():
    """``atomic_files`` and ``locks`` do: everything else would forget the permissions or half a file."""
    forbidden = {"mkdir", "makedirs", "write_text", "copyfile", "copytree", "copy2"}
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        if name in FOREIGN | {"atomic_files.py", "locks.py"}:
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in forbidden:
                call = ast.unparse(node)
                assert call.startswith(ALLOWED) or "partial" in call, f"{name}:{node.lineno}: {call}"
