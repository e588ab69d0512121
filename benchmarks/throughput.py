"""Files to answers: recordings made here, each a file of its own, through ``unfuse run``.

python benchmarks/throughput.py OUT [--rows 200] [--events 200000] [--model random:eventgpt-7b] [--tokens 46]
    [--devices cuda:0,cuda:1] [--questions 10] [--engine auto] [--seed-loop 5]

Random weights write what they like, so every answer is made as long (``--tokens``). The first run of a shape compiles
and captures: it is made on a few rows and thrown away. ``--seed-loop N`` also answers N rows as the seed's benchmark
does: one by one, through Hugging Face's ``generate``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import unfuse
from unfuse.events import write_eventgpt_npy
from unfuse.samples import Dataset, Sample
from unfuse.testing import synthetic_stream

QUESTION = "What are the key elements in this scene? " * 2


def main() -> None:
    """Makes rows, answers them, prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--model", default="random:eventgpt-7b")
    parser.add_argument("--tokens", type=int, default=46)
    parser.add_argument("--devices", default=None)
    parser.add_argument("--questions", type=int, default=0, help="So many of every row, in the place of one.")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--capacity", type=int, default=None)
    parser.add_argument("--encode-batch", type=int, default=8)
    parser.add_argument("--warm-rows", type=int, default=24)
    parser.add_argument("--seed-loop", type=int, default=0)
    given = parser.parse_args()
    rows = make_rows(given.out / "recordings", given.rows, given.events)
    settings = {
        "output_length": given.tokens, "workers": given.workers, "capacity": given.capacity,
        "encode_batch": given.encode_batch,
    }  # fmt: skip
    questions = [f"Question {n}: {QUESTION}" for n in range(given.questions)] or None
    found: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(given).items()}}
    if given.devices:
        run = unfuse.run(
            given.model, rows, questions=questions, devices=given.devices, engine=given.engine,
            output=given.out / f"devices-{time.time():.0f}", **settings,
        )  # fmt: skip
        found["run"] = run.summary().to_dict()
    else:
        with unfuse.load(given.model, engine=given.engine) as model:
            found["notes"] = model.notes
            warm = Dataset(name="warm", samples=rows.samples[: given.warm_rows])
            unfuse.run(model, warm, questions=questions, output=given.out / f"warm-{time.time():.0f}", **settings)
            run = unfuse.run(model, rows, questions=questions, output=given.out / f"run-{time.time():.0f}", **settings)
            found["run"] = run.summary().to_dict()
            if given.seed_loop:
                found["seed_loop_s"] = seed_loop(model, rows.samples[: given.seed_loop], given.tokens)
    print("\n".join(run.summary().lines()))
    print(json.dumps(found))


def make_rows(folder: Path, count: int, events: int) -> Dataset:
    """Recordings of random events, one a row, each a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for i in range(count):
        path = folder / f"{i:05d}.npy"
        if not path.exists():
            write_eventgpt_npy(path, synthetic_stream(events, seed=i, size=(640, 480)))
        samples.append(Sample.from_events(path, QUESTION))
    return Dataset(name=str(folder), samples=tuple(samples))


def seed_loop(model: unfuse.staged_model.StagedModel, samples: tuple[Sample, ...], tokens: int) -> list[float]:
    """Seconds of each, after one to warm up."""
    from unfuse.stages import Sampling

    seconds = []
    for sample in (samples[0], *samples):
        begun = time.perf_counter()
        model.fused(model.preprocess(model.load(sample)), tokens, Sampling(ignore_eos=True))
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


if __name__ == "__main__":
    main()
