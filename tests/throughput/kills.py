"""A run that is killed twenty times at random and resumed each time. Arguments: folder, seconds that it takes."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from unfuse.adapters.registry import load
from unfuse.samples.demo import demo_dataset
from unfuse.throughput.job import RunSettings, Work, answer_dataset

KILLS = 20


def main(folder: Path, seconds: float) -> None:
    """Forks the runs; this process stays as it is, and has no thread."""
    chance = random.Random(1)
    model = load("demo", device="cpu")
    work = Work(demo_dataset(max_samples=4), ["What moves?", "Is it raining?", "Which way does the disc move?"])
    settings = RunSettings(max_new_tokens=8, workers=0)
    kills, ended = 0, False
    while kills < KILLS or not ended:
        child = os.fork()
        if not child:
            code = 1
            try:
                answer_dataset(model, work, settings, output=folder, resume=folder.exists())
                code = 0
            finally:
                os._exit(code)
        if kills < KILLS:
            # Early at first: a run that has ended cannot be killed in its middle.
            time.sleep(chance.uniform(0, seconds * (0.3 + kills / KILLS)))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
            raise SystemExit(f"run {kills} ended with {os.WEXITSTATUS(status)}")
        ended = not os.WIFSIGNALED(status)
        kills += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
