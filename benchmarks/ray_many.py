"""Many tiny samples through the pools of a local Ray cluster: memory over time, and time a sample by thousands.

    python -m benchmarks.ray_many FOLDER                  10,000 recordings of 60 events, a tiny LLaVA
    python -m benchmarks.ray_many FOLDER --samples 500

Memory is that of all processes of the run: this one, Ray's own, and the actors. Pages that processes share, the object
store's among them, count once.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from unfuse.events.write import write_eventgpt_npy
from unfuse.runs.answers_file import AnswerRecord
from unfuse.samples import Dataset, Sample
from unfuse.testing import synthetic_stream
from unfuse.throughput.cluster.settings import ray_settings
from unfuse.throughput.job import RunSettings, Work, answer_dataset

_EVERY_S = 2.0
_EVENTS = 60


class Memory(threading.Thread):
    """Looks at the memory of this process and of all that it started, now and then."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float, float]] = []
        """Seconds since the start, MiB of this process, MiB of all."""
        self._begun = time.monotonic()
        self._ended = threading.Event()

    def run(self) -> None:
        """Until ``end``."""
        while not self._ended.wait(_EVERY_S):
            own = _pss_mib([os.getpid()])
            self.seen.append((time.monotonic() - self._begun, own, own + _pss_mib(_offspring(os.getpid()))))

    def end(self) -> None:
        """Looks no more."""
        self._ended.set()
        self.join()


def _offspring(parent: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            before = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(before, []).append(int(place.name))
    found, left = [], [parent]
    while left:
        left += (below := children.get(left.pop(), []))
        found += below
    return found


def _pss_mib(processes: Iterable[int]) -> float:
    """Of their memory the part that is theirs, what they share divided by those who share it."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def make(folder: Path, samples: int) -> Dataset:
    """Recordings of a few events each."""
    rows = []
    for number in range(samples):
        path = folder / f"{number // 1000:03}" / f"{number:06}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_eventgpt_npy(path, synthetic_stream(_EVENTS, seed=number, size=(32, 24)))
        rows.append(Sample(sample_id=f"{number:06}", question="What moves?", event_data=path))
    return Dataset(name=f"{samples} tiny recordings", samples=tuple(rows))


def steady(values: list[float]) -> float:
    """How much the last half of a series rises over its whole length, as a share of its median."""
    half = np.array(values[len(values) // 2 :])
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 1 else 0.0
    return slope * len(half) / float(np.median(half))


def main() -> None:
    """Makes them, answers them, and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--model", default="random:llava-tiny")
    parser.add_argument("--tokens", type=int, default=1, help="new tokens a sample")
    parser.add_argument("--pools", default=None, help="as for --ray-pools")
    parser.add_argument("--ray", default="local")
    arguments = parser.parse_args()
    data = make(arguments.folder / "recordings", arguments.samples)
    memory, ended = Memory(), list[float]()

    def note(record: AnswerRecord) -> None:
        ended.append(time.monotonic())

    memory.start()
    run = answer_dataset(
        arguments.model,
        Work(data),
        RunSettings(output_length=arguments.tokens),
        output=arguments.folder / f"run-{time.strftime('%H%M%S')}",
        ray=ray_settings(arguments.ray, arguments.pools, {}),
        on_answer=note,
    )
    memory.end()
    step = max(1, arguments.samples // 10)
    each = [1000 * (ended[at + step - 1] - ended[at]) / (step - 1) for at in range(0, len(ended) - step + 1, step)]
    # Where samples are made, and where the store and Ray's own tables are filled, it has to grow.
    found: dict[str, Any] = {
        "samples": len(ended),
        "ok": run.summary().ok,
        "ms_a_sample": [round(value, 2) for value in each],
        "ms_a_sample_last_by_first": round(each[-1] / each[0], 3),
        "own_mib": [round(own) for _, own, _ in memory.seen],
        "all_mib": [round(whole) for _, _, whole in memory.seen],
        "all_mib_median": round(median(whole for *_, whole in memory.seen)),
        "all_mib_rise_in_second_half": round(steady([whole for *_, whole in memory.seen]), 3),
    }
    for line in run.summary().lines():
        print(line)
    print(f"\n| samples | ms a sample |\n|---|---|\n| first {step} | {each[0]:.2f} |")
    for number, value in enumerate(each[1:], start=2):
        print(f"| to {number * step} | {value:.2f} |")
    print("\n| s | this process, MiB | all, MiB |\n|---|---|---|")
    for at in range(0, len(memory.seen), max(1, len(memory.seen) // 20)):
        seconds, own, whole = memory.seen[at]
        print(f"| {seconds:.0f} | {own:.0f} | {whole:.0f} |")
    (arguments.folder / "ray_many.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
