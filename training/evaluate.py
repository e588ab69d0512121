"""Asks a checkpoint about held-out scenes, simulated by numpy and run through the product, in every way it can be run.

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
from unfuse.samples.demo.folder import Row, write_events
from unfuse.samples.demo.scenes import demo_scene
from unfuse.staged_model import StagedModel
from unfuse.stages import Generation

FIRST_SEED: Final = 30_000_000
"""Of held-out scenes: neither learned from nor looked at while training."""
_BATCH: Final = 64
_FUSED: Final = 100
"""Questions that the fused call is asked as well, one by one."""
_IN_BFLOAT16: Final[int | None] = None
"""Scenes, the first of those compared, that are asked about in bfloat16, which some CPUs compute slowly; None: all."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one scene."""

    scene: int
    kind: str
    question: str
    reference: str


def simulate_scenes(folder: Path, seeds: Sequence[int], workers: int) -> list[unfuse.Sample]:
    """Recordings of the scenes, as files."""
    rows = [Row(str(seed), str(seed), seed, "", "") for seed in seeds]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(_simulate, folder), rows, chunksize=4))
    return [unfuse.Sample.from_events(folder / "event_npy" / f"{row.name}.npy") for row in rows]


def _simulate(folder: Path, row: Row) -> None:
    write_events(folder, row)


def questions(seeds: Sequence[int]) -> list[Asked]:
    """One of each kind about each scene; which phrasing goes by the seed."""
    return [
        Asked(scene, turn.kind, turn.question, turn.answer)
        for scene, seed in enumerate(seeds)
        for turn in one_of_each(demo_scene(seed)[1], seed)
    ]


def answers(model: StagedModel, asked: Sequence[Asked], features: Sequence[Features]) -> list[Generation]:
    """Stage 4 alone, in batches of prompts of like length."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].question))
    found: dict[int, Generation] = {}
    for start in range(0, len(order), _BATCH):
        part = order[start : start + _BATCH]
        batch = model.generate_batch(
            [asked[i].question for i in part],
            [features[asked[i].scene] for i in part],
            max_new_tokens=MAX_NEW_TOKENS,
        )
        found |= dict(zip(part, batch, strict=True))
    return [found[i] for i in range(len(asked))]


def scores(asked: Sequence[Asked], given: Sequence[Generation]) -> dict[str, Any]:
    """Shares of all answers, by attribute."""
    found = quality((a.reference, g.text) for a, g in zip(asked, given, strict=True))
    return {} if found is None else asdict(found)


def constant_guess(asked: Sequence[Asked]) -> dict[str, float]:
    """Best share, in %, of an answer that does not look: the commonest value of each attribute."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked:
        for (name, _), value in attributes(one.reference).items():
            values[name][value] += 1
    return {name: 100 * max(counter.values()) / counter.total() for name, counter in values.items()}


def evaluate(
    checkpoint: str, folder: Path, count: int, device: str, workers: int, compared: int | None = None
) -> dict[str, Any]:
    """Every way of running, on the same questions.

    Args:
        checkpoint: path or name of the model.
        folder: where the scenes' recordings are written.
        count: scenes that are asked about in float32.
        device: where the model runs.
        workers: processes that simulate the scenes.
        compared: scenes, the first ones, that are asked about in every other way; ``None``: all. Their scores in
            float32 are under ``compared``, and of those in bfloat16 under ``beside_bfloat16``.
    """
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    samples = simulate_scenes(folder, seeds, workers)
    asked = questions(seeds)
    found: dict[str, Any] = {
        "checkpoint": Path(checkpoint).name,
        "scenes": [seeds.start, seeds.stop],
        "questions": len(asked),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "constant_guess_pct": constant_guess(asked),
    }
    with unfuse.load(checkpoint, device=device, dtype="float32") as model:
        start = time.perf_counter()
        features = [model.encode(sample) for sample in samples]
        given = answers(model, asked, features)
        found["seconds"] = round(time.perf_counter() - start, 1)
        found["float32"] = scores(asked, given)
        found["by_kind"] = _by_kind(asked, given)
        found["wrong"] = [
            {**asdict(a), "answer": g.text} for a, g in zip(asked, given, strict=True) if a.reference != g.text
        ][:20]
        found["stopped_by_eos"] = sum(g.stop_reason == "eos" for g in given)
        found["output_tokens"] = [min(g.output_tokens for g in given), max(g.output_tokens for g in given)]
        samples, features = samples[:compared], features[:compared]
        asked = [one for one in asked if one.scene < len(samples)]
        given = given[: len(asked)]
        found["compared"] = scores(asked, given)
        saved = answers(model, asked, [_saved(f, folder / "features.safetensors", model) for f in features])
        found["same_tokens_from_saved_features"] = _same(given, saved)
        some = range(0, len(asked), max(len(asked) // _FUSED, 1))
        fused = [model.fused(_prepared(model, samples, asked[i]), MAX_NEW_TOKENS) for i in some]
        found["same_tokens_from_fused_call"] = _same([given[i] for i in some], fused)
        # Another scene's features for every question.
        shuffled = [features[(i + 1) % len(features)] for i in range(len(features))]
        found["shuffled"] = scores(asked, answers(model, asked, shuffled))
        found["one_frame"] = scores(asked, answers(model, asked, [model.encode(_middle(model, s)) for s in samples]))
    samples = samples[:_IN_BFLOAT16]
    asked = [one for one in asked if one.scene < len(samples)]
    given = given[: len(asked)]
    found["beside_bfloat16"] = scores(asked, given)
    with unfuse.load(checkpoint, device=device, dtype="bfloat16") as model:
        half = answers(model, asked, [model.encode(sample) for sample in samples])
        found["bfloat16"] = scores(asked, half)
        found["same_tokens_in_bfloat16"] = _same(given, half)
    return found


def _by_kind(asked: Sequence[Asked], given: Sequence[Generation]) -> dict[str, Any]:
    kinds = dict.fromkeys(one.kind for one in asked)
    exact = {}
    for kind in kinds:
        pairs = [(a.reference, g.text) for a, g in zip(asked, given, strict=True) if a.kind == kind]
        exact[kind] = [sum(reference == text for reference, text in pairs), len(pairs)]
    return exact


def _prepared(model: StagedModel, samples: Sequence[unfuse.Sample], one: Asked) -> Any:
    return model.preprocess(model.load(samples[one.scene]), one.question)


def _middle(model: StagedModel, sample: unfuse.Sample) -> unfuse.Sample:
    """The middle frame in the place of all."""
    frames = model.load(sample).frames
    return unfuse.Sample.from_frames([frames[len(frames) // 2]] * len(frames))


def _saved(features: Features, path: Path, model: StagedModel) -> Features:
    features.save(path)
    return Features.load(path).to(model.device)


def _same(one: Sequence[Generation], other: Sequence[Generation]) -> list[int]:
    """How many answers have equal tokens, and of how many."""
    return [sum(a.token_ids == b.token_ids for a, b in zip(one, other, strict=True)), len(one)]


@click.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--scenes", default=1000, show_default=True)
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", default=16, show_default=True)
def main(checkpoint: str, out: Path, scenes: int, device: str, workers: int) -> None:
    """Evaluates CHECKPOINT and writes what was found to OUT."""
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(checkpoint, Path(folder), scenes, device, workers)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, share in found["float32"]["attributes"].items():
        interval = f"[{share['low_pct']:.1f}, {share['high_pct']:.1f}]"
        wrong = found["shuffled"]["attributes"][name]
        alone = found["one_frame"]["attributes"][name]
        click.echo(
            f"{name:10s} {share['right']:6d} of {share['asked']:6d} "
            f"{100 * share['right'] / share['asked']:6.2f} % {interval}; shuffled "
            f"{100 * wrong['right'] / wrong['asked']:.1f} %, one frame "
            f"{100 * alone['right'] / alone['asked']:.1f} %, constant {found['constant_guess_pct'][name]:.1f} %"
        )
    for name in ("from_saved_features", "from_fused_call", "in_bfloat16"):
        click.echo(f"same tokens {name}: {found[f'same_tokens_{name}']}")


if __name__ == "__main__":
    main()
