"""A run that is killed twenty times at random and resumed each time. Argument: its folder."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.started import wait_for
from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.errors import UnfuseError
from unfuse.loading import load
from unfuse.records import read_manifest
from unfuse.samples.demo import demo_dataset

KILLS = 20


def main(folder: Path) -> None:
    """Forks the runs; this process stays as it is, and has no thread."""
    chance = random.Random(1)
    model = load("demo", device="cpu")
    work = Work(demo_dataset(max_samples=4), ["What moves?", "Is it raining?", "Which way does the disc move?"])
    settings = RunSettings(max_new_tokens=8, workers=0)
    kills, ended, seen = 0, False, resumed(folder)
    while kills < KILLS or not ended:
        child = os.fork()
        if not child:
            code = 1
            try:
                answer_dataset(RunJob(model=model, work=work, settings=settings, output=folder, resume=folder.exists()))
                code = 0
            finally:
                os._exit(code)
        if kills < KILLS:
            # Kill it after it resumed the killed run, at a random moment of the next answers.
            wait_for(lambda seen=seen, child=child: resumed(folder) != seen or ended_by_itself(child))
            time.sleep(chance.uniform(0, 0.1 + kills / KILLS))
            os.kill(child, signal.SIGKILL)
            seen = resumed(folder)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
            raise SystemExit(f"run {kills} ended with {os.WEXITSTATUS(status)}")
        ended = not os.WIFSIGNALED(status)
        kills += 1


def resumed(folder: Path) -> int:
    """How often a run was started in a folder."""
    try:
        return 1 + len(read_manifest(folder).resumed)
    except UnfuseError:
        return 0


def ended_by_itself(child: int) -> bool:
    """Whether it has; it is waited for later."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
