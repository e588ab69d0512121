"""Answer many tiny samples on the pools of a local Ray cluster: memory over time, and time per sample by thousands.

    python -m benchmarks.ray_many FOLDER                  10,000 recordings of 60 events, a tiny LLaVA
    python -m benchmarks.ray_many FOLDER --samples 500

The memory is of all processes of the run: this process, Ray's processes and the actors. Shared pages, such as the
object store's, count once.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.memory import MemorySampler
from unfuse.batch_inference.cluster.settings import ray_settings
from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.events.write import write_eventgpt_npy
from unfuse.records.answers_file import AnswerRecord
from unfuse.samples import Dataset, Sample
from unfuse.testing import synthetic_stream

_EVERY_S = 2.0
_EVENTS = 60


def write_recordings(folder: Path, samples: int) -> Dataset:
    """Write recordings of a few events each."""
    rows = []
    for number in range(samples):
        path = folder / f"{number // 1000:03}" / f"{number:06}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_eventgpt_npy(path, synthetic_stream(_EVENTS, seed=number, size=(32, 24)))
        rows.append(Sample(sample_id=f"{number:06}", question="What moves?", event_data=path))
    return Dataset(name=f"{samples} tiny recordings", samples=tuple(rows))


def rise_in_second_half(values: Sequence[float]) -> float:
    """Return the rise of the second half of a series over its length, as a share of its median."""
    half = np.array(values[len(values) // 2 :])
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 1 else 0.0
    return slope * len(half) / float(np.median(half))


def main() -> None:
    """Write and answer the recordings, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--model", default="random:llava-tiny")
    parser.add_argument("--tokens", type=int, default=1, help="new tokens a sample")
    parser.add_argument("--pools", default=None, help="as for --ray-pools")
    parser.add_argument("--ray", default="local")
    arguments = parser.parse_args()
    data = write_recordings(arguments.folder / "recordings", arguments.samples)
    finished: list[float] = []

    def note(record: AnswerRecord) -> None:
        finished.append(time.monotonic())

    job = RunJob(
        model=arguments.model,
        work=Work(data),
        settings=RunSettings(output_length=arguments.tokens),
        output=arguments.folder / f"run-{time.strftime('%H%M%S')}",
        ray=ray_settings(arguments.ray, arguments.pools, {}),
    )
    with MemorySampler(os.getpid(), _EVERY_S) as memory:
        run = answer_dataset(job, on_answer=note)
    step = max(1, arguments.samples // 10)
    each = [
        1000 * (finished[at + step - 1] - finished[at]) / (step - 1) for at in range(0, len(finished) - step + 1, step)
    ]
    # The first half grows while actors start and while the object store and Ray's tables fill.
    tree = [sample.tree_bytes / 2**20 for sample in memory.samples]
    found: dict[str, Any] = {
        "samples": len(finished),
        "ok": run.summary().ok,
        "ms_a_sample": [round(value, 2) for value in each],
        "ms_a_sample_last_by_first": round(each[-1] / each[0], 3),
        "own_mib": [round(sample.own_bytes / 2**20) for sample in memory.samples],
        "all_mib": [round(mib) for mib in tree],
        "all_mib_median": round(median(tree)),
        "all_mib_rise_in_second_half": round(rise_in_second_half(tree), 3),
    }
    for line in run.summary().lines():
        print(line)
    print(f"\n| samples | ms a sample |\n|---|---|\n| first {step} | {each[0]:.2f} |")
    for number, value in enumerate(each[1:], start=2):
        print(f"| to {number * step} | {value:.2f} |")
    print("\n| s | this process, MiB | all, MiB |\n|---|---|---|")
    for sample in memory.samples[:: max(1, len(memory.samples) // 20)]:
        own, all_ = sample.own_bytes / 2**20, sample.tree_bytes / 2**20
        print(f"| {sample.seconds:.0f} | {own:.0f} | {all_:.0f} |")
    (arguments.folder / "ray_many.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
