"""The command that a line about a missing package ends with."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from unfuse import extras
from unfuse.cli import run
from unfuse.extras import install_command

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder with an environment in it, in which this runs."""
    python = tmp_path / "my work" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(extras.shutil, "which", lambda name: None)
    return python


def test_the_pip_is_that_of_this_environment(environment, tmp_path, monkeypatch):
    assert install_command("torchvision") == f"'{environment}' -m pip install torchvision"
    monkeypatch.chdir(tmp_path / "my work")
    assert install_command("unfuse[dsec]") == '.venv/bin/python -m pip install "unfuse[dsec]"', "as the README types it"
    monkeypatch.setattr(extras.shutil, "which", lambda name: "/usr/bin/pip")
    assert install_command("unfuse[dsec]") == '.venv/bin/python -m pip install "unfuse[dsec]"', "another's pip"
    monkeypatch.setattr(extras.shutil, "which", lambda name: str(environment.parent / "pip"))
    assert install_command("unfuse[dsec]") == 'pip install "unfuse[dsec]"'


def test_extras_that_are_named_exist(capsys):
    """In the source, and in the list of ``doctor``; it has all extras for users of the package."""
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    assert set(re.findall(r"unfuse\[(\w+)\]", source)) <= set(EXTRAS)
    listed = re.search(r"_OPTIONAL: Final = \{(.*?)\n\}", (ROOT / "src/unfuse/cli/doctor.py").read_text(), re.DOTALL)
    named = dict(re.findall(r'"(\w+)": \(.*"unfuse\[(\w+)\]"\)', listed[1]))
    assert set(named.values()) == set(EXTRAS) - {"docs", "test", "training"}
    for package, extra in named.items():
        assert any(re.match(rf"{package}\b", requirement) for requirement in EXTRAS[extra]), (package, extra)
    assert run(["doctor"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n{package:<12} " in output for package in named)


def test_pip_takes_an_extra_from_what_is_installed():
    """So that the line works for whoever installed from a clone: no index is queried for this package."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "unfuse[dsec]"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "No module named pip" in done.stderr:
        pytest.skip("an environment without pip")
    assert done.returncode == 0, done.stderr
    assert "already satisfied: unfuse[dsec]" in done.stdout
