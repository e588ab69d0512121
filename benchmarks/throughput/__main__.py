"""Measure files to answers with EventGPT-7B's architecture: ``unfuse run`` under each engine beside the seed's loop.

One run on random weights made on the device (timings only) and recordings of random events on disk: 5 frames at 336, 46
new tokens per answer. Each engine answers the whole dataset twice; the second time counts, when all is compiled.

    python -m benchmarks.throughput --out FOLDER                    engines graphed and vllm, many questions per scene
    python -m benchmarks.throughput --out FOLDER --only-questions --dtype float32    whether sharing changes a token
    python -m benchmarks.throughput --out FOLDER --devices 2           one GPU, then two, one process each
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import unfuse
from benchmarks.throughput.recordings import write_recordings
from benchmarks.throughput.table import table
from unfuse.measure.environment import environment
from unfuse.samples import Dataset, Sample
from unfuse.samples.question import clean_question
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling

QUESTIONS = tuple(
    f"{word} in this scene?"
    for word in (
        "What moves", "What is near", "Who walks", "What turns", "What is on the left", "What is on the right",
        "Which way do the cars go", "Is anyone crossing", "Where is the road", "What stands still",
    )
)  # fmt: skip


@dataclass
class Measurements:
    """Results by name, written as soon as they are known."""

    arguments: argparse.Namespace
    started: float = field(default_factory=time.perf_counter)
    values: dict[str, Any] = field(default_factory=dict)

    def log(self, text: str) -> None:
        """Print a line of progress."""
        print(f"{time.perf_counter() - self.started:6.1f} s  {text}", file=sys.stderr, flush=True)

    def record(self, name: str, value: Any) -> None:
        """Record a result and write all: a later part may fail."""
        self.values[name] = value
        if self.arguments.out:
            self.arguments.out.mkdir(parents=True, exist_ok=True)
            (self.arguments.out / "table.json").write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
            (self.arguments.out / "table.md").write_text(table(self.values), encoding="utf-8")

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Measure one part; record the reason of a failure and continue."""
        try:
            value = work()
        except Exception as error:  # noqa: BLE001  # one part must not cost the others
            value = {"failed": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.record(name, value)
        self.log(f"{name}: {json.dumps(value)[:300]}")
        return value


def seeds_loop(model: StagedModel, samples: tuple[Sample, ...], tokens: int) -> dict[str, Any]:
    """Run one sample after the other through load, preprocess and the model's own ``generate``."""
    greedy = Sampling(ignore_eos=True)
    seconds = []
    for sample in samples:
        started = time.perf_counter()
        model.fused(model.preprocess(model.load(sample)), tokens, greedy)
        seconds.append(time.perf_counter() - started)
    warm = seconds[1:]
    return {"samples_per_s": len(warm) / sum(warm), "seconds": seconds}


def seed_part(measured: Measurements, dataset: Dataset) -> None:
    """Measure the baseline, with separate weights that are released afterwards."""
    arguments = measured.arguments
    eager = unfuse.load(arguments.model, device=arguments.device, dtype=arguments.dtype, engine="eager")
    measured.attempt("seed", lambda: seeds_loop(eager, dataset.samples[:6], arguments.tokens))
    eager.close()


def answer_dataset(
    model: StagedModel | str, dataset: Dataset, arguments: argparse.Namespace, *, times: int = 2, **more: Any
) -> dict[str, Any]:
    """Answer the dataset several times; return counts, rates and tokens of the last time."""
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            run = unfuse.run(
                model, dataset, output=Path(folder) / "run", output_length=arguments.tokens, workers=arguments.workers,
                **more,
            )  # fmt: skip
            texts = {record.sample_id: record.token_ids for record in run.answers()}
    summary = run.summary()
    if summary.failed:
        raise RuntimeError(f"{summary.failed} of {summary.samples} samples failed")
    return {**summary.to_dict(), "lines": summary.lines(), "token_ids": {k: list(v or ()) for k, v in texts.items()}}


def engine_part(measured: Measurements, name: str, dataset: Dataset) -> None:
    """Measure one engine on the whole dataset, and on many questions per scene."""
    arguments = measured.arguments
    model = unfuse.load(arguments.model, device=arguments.device, dtype=arguments.dtype, engine=name)
    try:
        if model.engine.name != name:
            measured.record(name, {"failed": "; ".join(model.notes)})
            return
        if not arguments.only_questions:
            result = measured.attempt(name, lambda: answer_dataset(model, dataset, arguments))
            result.pop("token_ids", None)
            if isinstance(result.get("failed"), str):
                return
        if name == arguments.engines[0]:
            questions_part(measured, model, Dataset(name=dataset.name, samples=dataset.samples[: arguments.scenes]))
    finally:
        model.close()


def questions_part(measured: Measurements, model: StagedModel, scenes: Dataset) -> None:
    """Measure many questions per scene: together, uncached in separate passes, and one by one."""
    arguments = measured.arguments
    together = measured.attempt(
        "questions together", lambda: answer_dataset(model, scenes, arguments, questions=QUESTIONS)
    )
    uncached = measured.attempt("questions uncached", lambda: answer_uncached(model, scenes, arguments))
    if "token_ids" in together and "token_ids" in uncached:
        same = [together["token_ids"][key] == ids for key, ids in uncached["token_ids"].items()]
        measured.record("same answers", {"same": sum(same), "of": len(same)})
    for part in (together, uncached):
        part.pop("token_ids", None)
    if not arguments.only_questions:
        measured.attempt("questions one by one", lambda: answer_one_by_one(model, scenes, arguments))


def answer_uncached(model: StagedModel, scenes: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer every question in a separate pass, so that nothing is shared: the same code without reuse."""
    wall, tokens = 0.0, dict[str, Any]()
    for number, question in enumerate(QUESTIONS[: arguments.uncached], start=1):
        part = answer_dataset(model, scenes, arguments, times=1, questions=[question])
        wall += part["times"]["wall_s"]
        tokens |= {key.replace("#1", f"#{number}"): ids for key, ids in part["token_ids"].items()}
    count = len(scenes.samples) * arguments.uncached
    return {"samples": count, "samples_per_s": count / wall, "wall_s": wall, "token_ids": tokens}


def answer_one_by_one(model: StagedModel, scenes: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode and answer question after question, as a loop over ``generate`` does; a few scenes are enough."""
    greedy = Sampling(ignore_eos=True)
    few = scenes.samples[:2]
    started = time.perf_counter()
    for sample in few:
        for question in QUESTIONS:
            features = model.encode(model.preprocess(model.load(sample)))
            model.generate(
                clean_question(question), features, max_new_tokens=arguments.tokens, sampling=greedy, reuse=False
            )
    count = len(few) * len(QUESTIONS)
    return {"samples": count, "samples_per_s": count / (time.perf_counter() - started)}


def devices_part(measured: Measurements, dataset: Dataset) -> None:
    """Measure the same dataset on one device and on several, one process each, without start-up."""
    arguments = measured.arguments
    engine = arguments.engines[0]
    several = arguments.devices
    names = [f"cuda:{index}" for index in range(several)] if torch.cuda.is_available() else ["cpu"] * several
    for count in (1, several):
        devices = ",".join(names[:count])
        measured.attempt(f"{count} devices", functools.partial(_answer_on, devices, dataset, arguments, engine))


def _answer_on(devices: str, dataset: Dataset, arguments: argparse.Namespace, engine: str) -> dict[str, Any]:
    result = answer_dataset(arguments.model, dataset, arguments, devices=devices, dtype=arguments.dtype, engine=engine)
    del result["token_ids"]
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--model", default="random:eventgpt-7b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="float32 tells near ties from other tokens")
    parser.add_argument("--engines", nargs="+", default=["graphed", "vllm"])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=50, help="number of scenes with many questions")
    parser.add_argument(
        "--uncached",
        type=int,
        default=4,
        help="questions that are also answered in separate passes, with new workers",
    )
    parser.add_argument("--only-questions", action="store_true", help="measure questions together and uncached only")
    parser.add_argument("--events", type=int, default=200_000, help="events of each recording")
    parser.add_argument("--tokens", type=int, default=46)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--devices", type=int, default=1, help="above 1: compare 1 device with this number only")
    arguments = parser.parse_args()
    if not 1 <= arguments.uncached <= len(QUESTIONS):
        parser.error(f"--uncached: from 1 to {len(QUESTIONS)}")
    measured = Measurements(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured.record("about", {"model": arguments.model, "dtype": arguments.dtype, **environment(device)})
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_recordings(Path(folder), arguments.samples, arguments.events)
        measured.log(f"{arguments.samples} recordings written")
        if arguments.devices > 1:
            devices_part(measured, dataset)
        else:
            if not arguments.only_questions:
                seed_part(measured, dataset)
            for name in arguments.engines:
                engine_part(measured, name, dataset)
    print(table(measured.values))


if __name__ == "__main__":
    main()
