"""Kill ``run``, ``bench`` and ``dataset build`` at chosen and random moments, and check that nothing is lost or twice.

python -m benchmarks.kills --kills 100 [--verb run|bench|build] [--seed 0]

Every life of a verb is a fork of this process, which has the demo model loaded. Half of the lives end in the middle of
a write: the child writes a random part of a line (``build``: of a file) and kills itself with SIGKILL. The other half
is killed from outside at a random moment after its first line. The next life resumes. After each kill:

- every line (``build``: file) that was whole before is there, byte for byte
- no ID has two lines

When a verb has ended, its answers, tokens or files equal those of an undisturbed process, and a new folder begins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.benchmarking import BenchSettings, RunOptions, bench_model
from unfuse.events import write_eventgpt_npy
from unfuse.loading import load
from unfuse.records.answers_file import ANSWERS_FILE
from unfuse.records.lines import is_whole
from unfuse.records.samples_file import SAMPLES_FILE
from unfuse.samples import Dataset
from unfuse.samples.build import Windowing, plan, write_dataset
from unfuse.samples.demo import demo_dataset
from unfuse.samples.sources import find_recordings
from unfuse.staged_model import StagedModel
from unfuse.testing import synthetic_stream

WINDOWS = 24
WAIT_S = 300.0
"""Guard against a child that hangs."""


class Verb(Protocol):
    """A verb to kill."""

    def work(self, folder: Path) -> None:
        """Start in a new folder, or go on in a folder; runs in the child."""

    def pieces(self, folder: Path) -> dict[str, bytes]:
        """Return the whole lines or files by ID; an ID with two lines is an error."""

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the content of a finished folder, without times."""

    def torn(self, chance: random.Random) -> Any:
        """Return a context in which a write tears and kills the process."""


@dataclass
class Lines:
    """Shared by the verbs that append lines."""

    model: StagedModel
    file: str
    rows: Dataset

    def pieces(self, folder: Path) -> dict[str, bytes]:
        """Return the whole lines by ID."""
        found: dict[str, bytes] = {}
        path = folder / self.file
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if line.endswith(b"\n") and is_whole(line.decode().removesuffix("\n")):
                fields = json.loads(line)
                if not fields.get("warmup"):
                    assert fields["sample_id"] not in found, f"{fields['sample_id']} twice"
                    found[fields["sample_id"]] = line
        return found

    def result(self, folder: Path) -> dict[str, Any]:
        """Return status and tokens by ID."""
        lines = {name: json.loads(line) for name, line in self.pieces(folder).items()}
        return {name: (line["status"], line["token_ids"]) for name, line in sorted(lines.items())}

    @contextmanager
    def torn(self, chance: random.Random) -> Iterator[None]:
        """Tear one of the next writes to the file."""
        left, write = chance.randrange(4), os.write

        def tearing(descriptor: int, data: Any) -> int:
            nonlocal left
            if Path(f"/proc/self/fd/{descriptor}").resolve().name == self.file:
                if left == 0:
                    write(descriptor, bytes(data)[: chance.randrange(len(data))])
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return write(descriptor, data)

        os.write = tearing
        yield


class Run(Lines):
    """``unfuse run``."""

    def work(self, folder: Path) -> None:
        """Answer the rows."""
        settings = RunSettings(max_new_tokens=4, workers=0, capacity=2)
        work = Work(self.rows)
        answer_dataset(RunJob(model=self.model, work=work, settings=settings, output=folder, resume=folder.exists()))


class Bench(Lines):
    """``unfuse bench``."""

    def work(self, folder: Path) -> None:
        """Measure the rows."""
        settings = BenchSettings(
            max_new_tokens=2, output_length=2, num_warmups=1, noise_repeats=1, balance_seconds=0.0, energy_seconds=0.0
        )
        bench_model(self.model, self.rows, settings, RunOptions(output=folder, resume=folder.exists()))


@dataclass
class Build:
    """``unfuse dataset build``."""

    recording: Path

    def work(self, folder: Path) -> None:
        """Write the windows."""
        found = plan(find_recordings(self.recording), Windowing(window_us=10_000), WINDOWS)
        write_dataset(folder, found, workers=1)

    def pieces(self, folder: Path) -> dict[str, bytes]:
        """Return the content of every final file, and the time of those that end a window: they are written once."""
        found = {}
        for path in folder.rglob("*.*"):
            if path.is_file() and not path.name.startswith("."):
                written = path.stat().st_mtime_ns if path.suffix == ".npy" else 0
                digest = hashlib.sha256(path.read_bytes()).digest()
                found[str(path.relative_to(folder))] = digest + written.to_bytes(8, "little")
        return found

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the content of every file, hidden files among them."""
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    @contextmanager
    def torn(self, chance: random.Random) -> Iterator[None]:
        """Leave part of one of the next files under its temporary name."""
        left, rename = chance.randrange(20), Path.replace

        def tearing(path: Path, target: Any) -> Path:
            nonlocal left
            if left == 0:
                os.truncate(path, chance.randrange(path.stat().st_size))
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return rename(path, target)

        Path.replace = tearing  # type: ignore[method-assign, assignment]
        yield


def kill_often(verb: Verb, kills: int, chance: random.Random, home: Path) -> Counter[str]:
    """Kill a verb and resume it; return counts. An ``AssertionError`` names what was lost or twice."""
    counts: Counter[str] = Counter()
    _life(lambda: verb.work(home / "undisturbed"))
    expected = verb.result(home / "undisturbed")
    while counts["kills"] < kills:
        folder = home / f"folder {counts['folders']}"
        counts["folders"] += 1
        before: dict[str, bytes] = {}
        ended = False
        while not ended:
            ended = _killed_life(verb, folder, chance, counts) if counts["kills"] < kills else _whole_life(verb, folder)
            now = verb.pieces(folder) if folder.exists() else {}
            lost = [name for name, piece in before.items() if now.get(name) != piece]
            assert not lost, f"lost or changed: {lost[:3]}"
            before = now
        found = verb.result(folder)
        assert found == expected, sorted(set(found) ^ set(expected))[:3] or "other contents"
        counts["pieces"] += len(before)
    return counts


def _whole_life(verb: Verb, folder: Path) -> bool:
    _life(lambda: verb.work(folder))
    return True


def _killed_life(verb: Verb, folder: Path, chance: random.Random, counts: Counter[str]) -> bool:
    """Run a life that is killed unless it ends before; return whether it ended."""
    seed, torn = chance.random(), counts["torn"] * 2 <= counts["kills"]

    def work() -> None:
        if torn:
            with verb.torn(random.Random(seed)):
                verb.work(folder)
        else:
            verb.work(folder)

    pieces = len(verb.pieces(folder)) if folder.exists() else 0
    child = _fork(work)
    if not torn:
        deadline = time.monotonic() + WAIT_S
        while not _is_over(child) and (len(verb.pieces(folder)) if folder.exists() else 0) <= pieces:
            assert time.monotonic() < deadline, "the child hangs"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, "a life failed"
        return True
    counts["kills"] += 1
    counts["torn"] += torn
    return False


def _life(work: Callable[[], None]) -> None:
    _, status = os.waitpid(_fork(work), 0)
    assert status == 0, "a life failed"


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise
        finally:
            os._exit(code)
    return child


def _is_over(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _rows(count: int) -> Dataset:
    samples = demo_dataset().samples
    rows = tuple(replace(samples[i % len(samples)], sample_id=f"row {i}") for i in range(count))
    return Dataset(name="rows", samples=rows)


def main(arguments: list[str] | None = None) -> int:
    """Kill the verbs and print the counts of each as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="of each verb")
    parser.add_argument("--verb", choices=("run", "bench", "build"), action="append")
    parser.add_argument("--rows", type=int, default=40, help="of the dataset of run and bench")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a forked child does not have the threads of its parent
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.npy"
        write_eventgpt_npy(recording, synthetic_stream(20_000, size=(160, 120), duration_us=400_000))
        verbs: dict[str, Callable[[], Verb]] = {
            "run": lambda: Run(load("demo", device="cpu"), ANSWERS_FILE, _rows(given.rows)),
            "bench": lambda: Bench(load("demo", device="cpu"), SAMPLES_FILE, _rows(given.rows)),
            "build": lambda: Build(recording),
        }
        for name in given.verb or verbs:
            home = Path(folder) / name
            home.mkdir()
            start = time.perf_counter()
            counts = kill_often(verbs[name](), given.kills, random.Random(f"{name} {given.seed}"), home)
            result = {"verb": name, **counts, "lost": 0, "twice": 0, "seconds": round(time.perf_counter() - start, 1)}
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
