"""The script that checks commit subjects, on small repositories."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.contract.commits import main, problems

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose main branch has one commit with a good subject."""
    for name, value in {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    commit(tmp_path, "Add the package")
    return tmp_path


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def commit(folder, subject):
    git(folder, "commit", "--quiet", "--allow-empty", "-m", subject)


@pytest.mark.parametrize(
    "subject", ["Add a reader of AEDAT4 files", 'Revert "' + "Add " + 70 * "x" + '"', "Add " + 68 * "x"]
)
def test_good_subjects(subject):
    assert problems(subject) == []


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("Ranges as they were seen", "starts with 'Ranges'"),
        ("add a reader", "starts with 'add'"),
        ("Adds a reader", "starts with 'Adds'"),
        ("Add " + 69 * "x", "has 73 characters"),
        ("Add a reader; fix a test", "has a ';'"),
    ],
)
def test_bad_subjects(subject, reason):
    (found,) = problems(subject)
    assert found.startswith(reason)


def test_the_branch_s_own_commits_are_checked(repository, capsys):
    commit(repository, "An old subject on main")
    git(repository, "switch", "--quiet", "--create", "topic")
    commit(repository, "Fix the reader")
    assert main([], repository) == 0
    assert "1 commit subjects checked, 0 to correct" in capsys.readouterr().out
    commit(repository, "Words that are so")
    assert main([], repository) == 1
    assert "Words that are so\n    starts with 'Words'" in capsys.readouterr().out
    assert main(["HEAD~2"], repository) == 1, "the old subject"
    assert main(["nothing..HEAD"], repository) == 2


def test_commits_of_the_main_branch_are_not_checked(repository, capsys):
    commit(repository, "Nothing new")
    assert main([], repository) == 0
    assert "0 commit subjects checked" in capsys.readouterr().out


def test_without_history_nothing_is_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("GIT_DIR", raising=False)
    assert main([], tmp_path) == 0
    assert "no git history" in capsys.readouterr().out
