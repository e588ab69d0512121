"""Check the subjects of commits: ``python -m tests.contract.commits [RANGE]``.

Without RANGE, check the commits since the merge base with the main branch: on the main branch there are none.
The exit code is 1 if a subject breaks a rule. Without git or history there is nothing to check. Add a missing verb to
``verbs.txt``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MOST_CHARACTERS = 72
MAIN_BRANCHES = ("origin/main", "main", "origin/master", "master")
VERBS = frozenset((Path(__file__).parent / "verbs.txt").read_text().split())


def problems(subject: str) -> list[str]:
    """Return the rules that a subject breaks."""
    first = subject.split(" ")[0]
    found = []
    if first not in {verb.capitalize() for verb in VERBS}:
        found.append(f"starts with {first!r}, expected an imperative verb of tests/contract/verbs.txt")
    if len(subject) > MOST_CHARACTERS and not subject.startswith('Revert "'):
        found.append(f"has {len(subject)} characters, expected at most {MOST_CHARACTERS}")
    if ";" in subject:
        found.append("has a ';', expected one change per commit")
    return found


def subjects(revisions: list[str], folder: Path) -> list[tuple[str, str]]:
    """Return hash and subject of each commit that is no merge.

    Args:
        revisions: arguments of ``git log``, such as a range.
        folder: a folder of the repository.

    Raises:
        subprocess.CalledProcessError: git does not know the revisions.
    """
    lines = _git(["log", "--no-merges", "--format=%h %s", *revisions, "--"], folder).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def commits_to_check(folder: Path) -> list[str] | None:
    """Return the arguments of ``git log`` for commits that are not on the main branch; None without history."""
    for branch in MAIN_BRANCHES:
        try:
            base = _git(["merge-base", branch, "HEAD"], folder)
        except (OSError, subprocess.CalledProcessError):
            continue
        return [f"{base}..HEAD"]
    return None


def main(arguments: list[str], folder: Path) -> int:
    """Print each subject that breaks a rule, and return the exit code."""
    revisions = arguments or commits_to_check(folder)
    if revisions is None:
        sys.stdout.write("no git history with a main branch: no commit subjects to check\n")
        return 0
    try:
        checked = subjects(revisions, folder)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr)
        return 2
    broken = [(commit, subject, found) for commit, subject in checked if (found := problems(subject))]
    for commit, subject, found in broken:
        sys.stdout.write(f"{commit} {subject}\n" + "".join(f"    {reason}\n" for reason in found))
    sys.stdout.write(f"{len(checked)} commit subjects checked, {len(broken)} to correct\n")
    return 1 if broken else 0


def _git(arguments: list[str], folder: Path) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parent))
