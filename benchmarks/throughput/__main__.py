"""Files to answers at EventGPT-7B's shape: ``unfuse run`` under each engine beside the seed's loop, all in one run.

Random weights made on the device (timings only), recordings of random events on the disk: 5 frames at 336, 46 new
tokens an answer. Each engine answers the whole dataset twice; the second time counts, when all is compiled.

    python -m benchmarks.throughput --out FOLDER                       engines graphed and vllm, many questions a scene
    python -m benchmarks.throughput --out FOLDER --only-questions --dtype float32    whether sharing changes a token
    python -m benchmarks.throughput --out FOLDER --devices 2           one GPU, then two, a process each
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
class Found:
    """Everything that was measured, by name."""

    arguments: argparse.Namespace
    begun: float = field(default_factory=time.perf_counter)
    values: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.perf_counter() - self.begun:6.1f} s  {text}", file=sys.stderr, flush=True)

    def keep(self, name: str, value: Any) -> None:
        """Kept at once: a later part may fail."""
        self.values[name] = value
        if self.arguments.out:
            self.arguments.out.mkdir(parents=True, exist_ok=True)
            (self.arguments.out / "table.json").write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
            (self.arguments.out / "table.md").write_text(table(self.values), encoding="utf-8")

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Measures one part; where it fails, notes why and goes on."""
        try:
            value = work()
        except Exception as error:  # noqa: BLE001  # one part must not cost the others
            value = {"failed": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.keep(name, value)
        self.say(f"{name}: {json.dumps(value)[:300]}")
        return value


def seeds_loop(model: StagedModel, samples: tuple[Sample, ...], tokens: int) -> dict[str, Any]:
    """One sample after the other through load, preprocess and the model's own ``generate``."""
    greedy = Sampling(ignore_eos=True)
    seconds = []
    for sample in samples:
        begun = time.perf_counter()
        model.fused(model.preprocess(model.load(sample)), tokens, greedy)
        seconds.append(time.perf_counter() - begun)
    # The first one warms up.
    kept = seconds[1:]
    return {"samples_per_s": len(kept) / sum(kept), "seconds": seconds}


def seed_part(found: Found, dataset: Dataset) -> None:
    """The baseline, with weights of its own that are gone afterwards."""
    arguments = found.arguments
    eager = unfuse.load(arguments.model, device=arguments.device, dtype=arguments.dtype, engine="eager")
    found.attempt("seed", lambda: seeds_loop(eager, dataset.samples[:6], arguments.tokens))
    eager.close()


def answered(
    model: StagedModel | str, dataset: Dataset, arguments: argparse.Namespace, *, times: int = 2, **more: Any
) -> dict[str, Any]:
    """The dataset's answers, several times over; of the last time, counts and rates."""
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


def engine_part(found: Found, name: str, dataset: Dataset) -> None:
    """One engine on the whole dataset, and on many questions a scene."""
    arguments = found.arguments
    model = unfuse.load(arguments.model, device=arguments.device, dtype=arguments.dtype, engine=name)
    try:
        if model.engine.name != name:
            found.keep(name, {"failed": "; ".join(model.notes)})
            return
        if not arguments.only_questions:
            result = found.attempt(name, lambda: answered(model, dataset, arguments))
            result.pop("token_ids", None)
            if isinstance(result.get("failed"), str):
                return
        if name == arguments.engines[0]:
            questions_part(found, model, Dataset(name=dataset.name, samples=dataset.samples[: arguments.scenes]))
    finally:
        model.close()


def questions_part(found: Found, model: StagedModel, scenes: Dataset) -> None:
    """Many questions a scene: together, in passes of their own, and one by one."""
    arguments = found.arguments
    together = found.attempt("questions together", lambda: answered(model, scenes, arguments, questions=QUESTIONS))
    afresh = found.attempt("questions afresh", lambda: asked_afresh(model, scenes, arguments))
    if "token_ids" in together and "token_ids" in afresh:
        same = [together["token_ids"][key] == ids for key, ids in afresh["token_ids"].items()]
        found.keep("same answers", {"same": sum(same), "of": len(same)})
    for part in (together, afresh):
        part.pop("token_ids", None)
    if not arguments.only_questions:
        found.attempt("questions one by one", lambda: asked_one_by_one(model, scenes, arguments))


def asked_afresh(model: StagedModel, scenes: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every question in a pass of its own, so that nothing is shared: the same machinery without reuse."""
    wall, tokens = 0.0, dict[str, Any]()
    for number, question in enumerate(QUESTIONS[: arguments.afresh], start=1):
        part = answered(model, scenes, arguments, times=1, questions=[question])
        wall += part["times"]["wall_s"]
        tokens |= {key.replace("#1", f"#{number}"): ids for key, ids in part["token_ids"].items()}
    count = len(scenes.samples) * arguments.afresh
    return {"samples": count, "samples_per_s": count / wall, "wall_s": wall, "token_ids": tokens}


def asked_one_by_one(model: StagedModel, scenes: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode and ask, question after question, as a loop over ``generate`` does it; a few scenes are enough."""
    greedy = Sampling(ignore_eos=True)
    few = scenes.samples[:2]
    begun = time.perf_counter()
    for sample in few:
        for question in QUESTIONS:
            features = model.encode(model.preprocess(model.load(sample)))
            model.generate(
                clean_question(question), features, max_new_tokens=arguments.tokens, sampling=greedy, reuse=False
            )
    count = len(few) * len(QUESTIONS)
    return {"samples": count, "samples_per_s": count / (time.perf_counter() - begun)}


def devices_part(found: Found, dataset: Dataset) -> None:
    """The same dataset on one device and on several, a process each; start-up is not counted."""
    arguments = found.arguments
    engine = arguments.engines[0]
    several = arguments.devices
    names = [f"cuda:{index}" for index in range(several)] if torch.cuda.is_available() else ["cpu"] * several
    for count in (1, several):
        devices = ",".join(names[:count])
        found.attempt(f"{count} devices", functools.partial(_on, devices, dataset, arguments, engine))


def _on(devices: str, dataset: Dataset, arguments: argparse.Namespace, engine: str) -> dict[str, Any]:
    result = answered(arguments.model, dataset, arguments, devices=devices, dtype=arguments.dtype, engine=engine)
    del result["token_ids"]
    return result


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--model", default="random:eventgpt-7b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="float32 tells near ties from other tokens")
    parser.add_argument("--engines", nargs="+", default=["graphed", "vllm"])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=50, help="of the part with many questions a scene")
    parser.add_argument(
        "--afresh", type=int, default=4, help="questions also asked in passes of their own, with new workers each"
    )
    parser.add_argument("--only-questions", action="store_true", help="together and afresh, and nothing else")
    parser.add_argument("--events", type=int, default=200_000, help="of each recording")
    parser.add_argument("--tokens", type=int, default=46)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--devices", type=int, default=1, help="more than one: only that comparison")
    arguments = parser.parse_args()
    if not 1 <= arguments.afresh <= len(QUESTIONS):
        parser.error(f"--afresh: from 1 to {len(QUESTIONS)}")
    found = Found(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found.keep("about", {"model": arguments.model, "dtype": arguments.dtype, **environment(device)})
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_recordings(Path(folder), arguments.samples, arguments.events)
        found.say(f"{arguments.samples} recordings written")
        if arguments.devices > 1:
            devices_part(found, dataset)
        else:
            if not arguments.only_questions:
                seed_part(found, dataset)
            for name in arguments.engines:
                engine_part(found, name, dataset)
    print(table(found.values))


if __name__ == "__main__":
    main()
