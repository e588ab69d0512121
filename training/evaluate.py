"""Evaluate a checkpoint on held-out scenes, simulated by numpy and run through ``unfuse``, in every way of running.

python -m training.evaluate CHECKPOINT OUT.json
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import torch

import unfuse
from unfuse.features import Features
from unfuse.report.quality import quality
from unfuse.samples.attributes import attributes
from unfuse.samples.demo import MAX_NEW_TOKENS
from unfuse.samples.demo.dialogue import one_of_each
from unfuse.samples.demo.folder import DemoRow, write_events
from unfuse.samples.demo.scenes import demo_scene
from unfuse.staged_model import StagedModel
from unfuse.stages import Generation, Prepared

FIRST_SEED: Final = 30_000_000
"""First seed of held-out scenes; no training or validation set contains these scenes."""
_BATCH: Final = 64
_FUSED: Final = 100
"""Number of questions that are also answered by the fused call, one by one."""
_IN_BFLOAT16: Final[int | None] = None
"""Number of compared scenes, from the first on, for bfloat16 (slow on some CPUs); None: all."""


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """One question about one scene."""

    scene: int
    kind: str
    question: str
    reference: str


def simulate_scenes(folder: Path, seeds: Sequence[int], workers: int) -> list[unfuse.Sample]:
    """Simulate the scenes in ``workers`` processes and write their recordings as files."""
    rows = [DemoRow(str(seed), str(seed), seed, "", "") for seed in seeds]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(_simulate, folder), rows, chunksize=4))
    return [unfuse.Sample.from_events(folder / "event_npy" / f"{row.name}.npy") for row in rows]


def _simulate(folder: Path, row: DemoRow) -> None:
    write_events(folder, row)


def scene_questions(seeds: Sequence[int]) -> list[SceneQuestion]:
    """Return one question of each kind about each scene; the seed chooses the phrasing."""
    return [
        SceneQuestion(scene, turn.kind, turn.question, turn.answer)
        for scene, seed in enumerate(seeds)
        for turn in one_of_each(demo_scene(seed)[1], seed)
    ]


def answer(model: StagedModel, questions: Sequence[SceneQuestion], features: Sequence[Features]) -> list[Generation]:
    """Run Stage 4 alone, in batches of prompts of similar length."""
    order = sorted(range(len(questions)), key=lambda i: len(questions[i].question))
    found: dict[int, Generation] = {}
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = model.generate_batch(
            [questions[i].question for i in part],
            [features[questions[i].scene] for i in part],
            max_new_tokens=MAX_NEW_TOKENS,
        )
        found |= dict(zip(part, batch, strict=True))
    return [found[i] for i in range(len(questions))]


def scores(questions: Sequence[SceneQuestion], answers: Sequence[Generation]) -> dict[str, Any]:
    """Return the shares of right answers, in all and by attribute."""
    found = quality((q.reference, a.text) for q, a in zip(questions, answers, strict=True))
    return {} if found is None else asdict(found)


def constant_guess(questions: Sequence[SceneQuestion]) -> dict[str, float]:
    """Return the best share, in %, of an answer without a look: the most frequent value of each attribute."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        for (name, _), value in attributes(question.reference).items():
            values[name][value] += 1
    return {name: 100 * max(counter.values()) / counter.total() for name, counter in values.items()}


def evaluate(
    checkpoint: str, folder: Path, count: int, device: str, workers: int, compared: int | None = None
) -> dict[str, Any]:
    """Answer the same questions in every way of running.

    Args:
        checkpoint: path or name of the model.
        folder: folder for the scenes' recordings.
        count: scenes of the questions in float32.
        device: device of the model.
        workers: processes that simulate the scenes.
        compared: number of scenes, the first ones, for every other way; ``None``: all. Their scores in float32 are
            under ``compared``, and of the scenes in bfloat16 under ``beside_bfloat16``.
    """
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    samples = simulate_scenes(folder, seeds, workers)
    questions = scene_questions(seeds)
    found: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "scenes": [seeds.start, seeds.stop],
        "questions": len(questions),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "constant_guess_pct": constant_guess(questions),
    }
    with unfuse.load(checkpoint, device=device, dtype="float32") as model:
        start = time.perf_counter()
        features = [model.encode(sample) for sample in samples]
        answers = answer(model, questions, features)
        found["seconds"] = round(time.perf_counter() - start, 1)
        found |= _float32_results(questions, answers)
        samples, features = samples[:compared], features[:compared]
        questions, answers = _about(len(samples), questions, answers)
        found["compared"] = scores(questions, answers)
        saved = answer(model, questions, [_saved(f, folder / "features.safetensors", model) for f in features])
        found["same_tokens_from_saved_features"] = _same(answers, saved)
        some = range(0, len(questions), max(len(questions) // _FUSED, 1))
        fused = [model.fused(_prepared(model, samples, questions[i]), MAX_NEW_TOKENS) for i in some]
        found["same_tokens_from_fused_call"] = _same([answers[i] for i in some], fused)
        # The features of another scene for every question.
        shuffled = [features[(i + 1) % len(features)] for i in range(len(features))]
        found["shuffled"] = scores(questions, answer(model, questions, shuffled))
        one_frame = [model.encode(_one_frame(model, sample)) for sample in samples]
        found["one_frame"] = scores(questions, answer(model, questions, one_frame))
    samples = samples[:_IN_BFLOAT16]
    questions, answers = _about(len(samples), questions, answers)
    found["beside_bfloat16"] = scores(questions, answers)
    with unfuse.load(checkpoint, device=device, dtype="bfloat16") as model:
        half = answer(model, questions, [model.encode(sample) for sample in samples])
        found["bfloat16"] = scores(questions, half)
        found["same_tokens_in_bfloat16"] = _same(answers, half)
    return found


def _float32_results(questions: Sequence[SceneQuestion], answers: Sequence[Generation]) -> dict[str, Any]:
    pairs = list(zip(questions, answers, strict=True))
    lengths = [a.output_tokens for a in answers]
    return {
        "float32": scores(questions, answers),
        "by_kind": _by_kind(questions, answers),
        "wrong": [{**asdict(q), "answer": a.text} for q, a in pairs if q.reference != a.text][:20],
        "stopped_by_eos": sum(a.stop_reason == "eos" for a in answers),
        "output_tokens": [min(lengths), max(lengths)],
    }


def _about(
    scenes: int, questions: Sequence[SceneQuestion], answers: list[Generation]
) -> tuple[list[SceneQuestion], list[Generation]]:
    """Return the questions and answers about the first ``scenes`` scenes."""
    about = [question for question in questions if question.scene < scenes]
    return about, answers[: len(about)]


def _by_kind(questions: Sequence[SceneQuestion], answers: Sequence[Generation]) -> dict[str, Any]:
    exact: dict[str, list[int]] = {}
    for question, found in zip(questions, answers, strict=True):
        counts = exact.setdefault(question.kind, [0, 0])
        counts[0] += question.reference == found.text
        counts[1] += 1
    return exact


def _prepared(model: StagedModel, samples: Sequence[unfuse.Sample], question: SceneQuestion) -> Prepared:
    return model.preprocess(model.load(samples[question.scene]), question.question)


def _one_frame(model: StagedModel, sample: unfuse.Sample) -> unfuse.Sample:
    """Replace every frame by the middle frame."""
    frames = model.load(sample).frames
    return unfuse.Sample.from_frames([frames[len(frames) // 2]] * len(frames))


def _saved(features: Features, path: Path, model: StagedModel) -> Features:
    features.save(path)
    return Features.load(path).to(model.device)


def _same(answers: Sequence[Generation], others: Sequence[Generation]) -> list[int]:
    """Return the number of answers with equal tokens, and of all answers."""
    return [sum(a.token_ids == b.token_ids for a, b in zip(answers, others, strict=True)), len(answers)]


@click.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--scenes", default=1000, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", default=16, show_default=True)
def main(checkpoint: str, out: Path, scenes: int, device: str, workers: int) -> None:
    """Evaluate CHECKPOINT and write the results to OUT."""
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(checkpoint, Path(folder), scenes, device, workers)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, share in found["float32"]["attributes"].items():
        interval = f"[{share['low_pct']:.1f}, {share['high_pct']:.1f}]"
        shuffled = found["shuffled"]["attributes"][name]
        one_frame = found["one_frame"]["attributes"][name]
        click.echo(
            f"{name:10s} {share['right']:6d} of {share['asked']:6d} "
            f"{100 * share['right'] / share['asked']:6.2f} % {interval}; shuffled "
            f"{100 * shuffled['right'] / shuffled['asked']:.1f} %, one frame "
            f"{100 * one_frame['right'] / one_frame['asked']:.1f} %, constant {found['constant_guess_pct'][name]:.1f} %"
        )
    for name in ("from_saved_features", "from_fused_call", "in_bfloat16"):
        click.echo(f"same tokens {name}: {found[f'same_tokens_{name}']}")


if __name__ == "__main__":
    main()
