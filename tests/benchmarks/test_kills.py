"""Kills lose nothing and repeat nothing; a verb that does is found."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.kills import kill_often
from tests import forked


@pytest.mark.parametrize("verb", ["run", "bench", "build"])
def test_killed_and_resumed(verb):
    """A process of its own: its forks have the model loaded and start at once."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "3", "--rows", "5", "--verb", verb]
    done = forked.run(command)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["kills"], counts["torn"]) == (3, 2)
    assert (counts["lost"], counts["twice"]) == (0, 0)


class Faulty:
    """Appends numbers to a file, with a fault when it goes on."""

    def __init__(self, fault):
        self._fault = fault
        self._left = None
        """Lines until the process kills itself; None if it does not."""

    def work(self, folder):
        folder.mkdir(exist_ok=True)
        path = folder / "lines"
        there = path.read_text().splitlines() if path.exists() else []
        done = len(there)
        if there and self._fault == "lost":
            there = there[1:]
        if there and self._fault == "twice":
            there.append(there[0])
        path.write_text("".join(f"{line}\n" for line in there))
        for number in range(done, 4):
            if number == self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            with path.open("a") as file:
                file.write(f"{number}\n")

    def pieces(self, folder):
        path, found = folder / "lines", {}
        for line in path.read_text().splitlines() if path.exists() else []:
            assert line not in found, f"{line} twice"
            found[line] = b""
        return found

    def result(self, folder):
        return self.pieces(folder)

    def torn(self, chance):
        self._left = 2
        return nullcontext()


@pytest.mark.parametrize(("fault", "message"), [("lost", "lost or changed: \\['0'\\]"), ("twice", "0 twice")])
def test_a_faulty_verb_is_found(fault, message, tmp_path: Path):
    with pytest.raises(AssertionError, match=message):
        kill_often(Faulty(fault), 4, random.Random(0), tmp_path)
