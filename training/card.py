"""Write the model card and its figure from the records of training and evaluation: no number is typed.

python -m training.card training/record src/unfuse/samples/demo/model/EventGPT-demo/README.md
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from training.scenes import HELD_OUT, VALIDATION_SEEDS
from unfuse.samples.demo.scenes import demo_scene

_ABOUT: Final = {
    "count": "how many objects move",
    "shape": "which shapes move",
    "direction": "which way each moves: left, right, up, down, closer, away",
    "place": "in which third of the picture",
    "fastest": "which is the fastest of several",
    "camera": "still, turning left or right, moving forward",
    "flicker": "whether a lamp flickers",
    "absent": "that a shape is not there",
    "shown": "that events do not show it",
}


def card(log: list[dict[str, Any]], control: list[dict[str, Any]], found: dict[str, Any], weights: Path) -> str:
    """Return the card as Markdown.

    Args:
        log: entries of the training.
        control: entries of the training on one frame.
        found: results of ``training.evaluate``.
        weights: the checkpoint's tensors.
    """
    lines = [
        *_introduction(weights),
        *_answers(found),
        *_control(control),
        "",
        *_recipe(log),
    ]
    return "\n".join(lines)


def _introduction(weights: Path) -> list[str]:
    return [
        "---",
        "license: apache-2.0",
        "pipeline_tag: image-text-to-text",
        "language: en",
        "---",
        "",
        "# EventGPT-demo",
        "",
        "A small EventGPT (CLIP-style tower, projector, adaptor, spatio-temporal pooling, LLaMA) in the published "
        "checkpoint format, trained from nothing on simulated event recordings. It answers questions about moving "
        "shapes; it knows nothing else, and nothing of real scenes.",
        "",
        f"{_parameters(weights)} parameters, {weights.stat().st_size / 2**20:.1f} MiB in bfloat16; five frames of 112 "
        f"pixels, 70 positions a scene. `model.safetensors` has SHA-256 `{_sha256(weights)}`.",
        "",
    ]


def _answers(found: dict[str, Any]) -> list[str]:
    lines = [
        "## What it answers",
        "",
        f"Scenes of new seeds ({found['scenes'][0]} to {found['scenes'][1] - 1}), simulated by numpy, written as "
        f"EventGPT `.npy` and run through `unfuse`: {found['questions']} questions, one of each kind a scene, greedy, "
        f"float32, on {found['device']}. Intervals are 95 % (Clopper and Pearson). `shuffled`: every question gets "
        "another scene's features. `guess`: the best answer that does not look. `one frame`: the middle frame in place "
        "of all five.",
        "",
        "| attribute | | right | 95 % interval | shuffled | guess | one frame |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, share in found["float32"]["attributes"].items():
        lines.append(
            f"| {name} | {_ABOUT[name]} | {share['right']} of {share['asked']}, {_pct(share)} | "
            f"{share['low_pct']:.1f} .. {share['high_pct']:.1f} % | {_pct(found['shuffled']['attributes'][name])} | "
            f"{found['constant_guess_pct'][name]:.1f} % | {_pct(found['one_frame']['attributes'][name])} |"
        )
    exact = found["float32"]["exact"]
    return [
        *lines,
        "",
        f"Every attribute of an answer right: {exact['right']} of {exact['asked']}, {_pct(exact)} "
        f"[{exact['low_pct']:.1f}, {exact['high_pct']:.1f}]. All answers ended by themselves: "
        f"{found['stopped_by_eos']} of {found['questions']}, {found['output_tokens'][0]} to "
        f"{found['output_tokens'][1]} tokens.",
        "",
        f"Same tokens as above: from saved and loaded features {_of(found['same_tokens_from_saved_features'])}; from "
        f"the fused `generate` {_of(found['same_tokens_from_fused_call'])}; in bfloat16 "
        f"{_of(found['same_tokens_in_bfloat16'])}, where {_pct(found['bfloat16']['exact'])} are right in every "
        "attribute.",
        "",
        "A frame shows the axis along which a shape moves, and not which way: one in two is right without the others.",
        "",
    ]


def _recipe(log: list[dict[str, Any]]) -> list[str]:
    recipe = log[0]["recipe"]
    steps = [entry for entry in log if entry["event"] == "step"]
    simulated = sum(float(entry["note"].split()[-2]) for entry in log if entry["event"] == "scenes")
    return [
        "## How it was made",
        "",
        "```",
        "python -m training.train OUT",
        "```",
        "",
        f"Seed {recipe['seed']}, code of commit {log[0]['commit']}, {log[0]['device']}, torch {log[0]['torch']}: "
        f"{recipe['scenes']} scenes simulated in {simulated:.0f} s, {recipe['steps']} steps in "
        f"{steps[-1]['seconds']:.0f} s. `training/record/log.jsonl` has every number of it. The same command makes "
        "a model of the same quality, not the same bits: sums on a GPU are not ordered.",
        "",
        "Training adds heads that name the scene's facts from the five temporal tokens, and where each shape is in "
        "each frame; they are not part of the checkpoint.",
        "",
    ]


def _control(log: list[dict[str, Any]]) -> list[str]:
    """Describe the accuracy of a model trained on one frame."""
    cameras = Counter(demo_scene(seed)[1].camera for seed in range(VALIDATION_SEEDS, VALIDATION_SEEDS + HELD_OUT))
    recipe, answers = log[0]["recipe"], next(entry for entry in log if entry["event"] == "answers")

    def share(name: str) -> str:
        right, total = answers[name]
        return f"{right} of {total}, {100 * right / total:.1f} %"

    scenes = cameras.total()
    blind = scenes - (cameras["left"] + cameras["right"]) / 2
    return [
        f"A model trained with the middle frame in place of all five (`--one-frame`, {recipe['scenes']} scenes, "
        f"{recipe['steps']} steps, {scenes} scenes held out) finds shape ({share('shape: shape')}) and place "
        f"({share('place: place')}), and not the direction ({share('direction: direction')}). The camera: "
        f"{share('camera: camera')}; all but left from right would be {100 * blind / scenes:.1f} %.",
    ]


def draw_curve(log: list[dict[str, Any]], target: Path) -> None:
    """Draw the losses over the steps."""
    from matplotlib.figure import Figure

    steps = [entry for entry in log if entry["event"] == "step"]
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in ("language", "facts", "tracks"):
        axes.plot([entry["step"] for entry in steps], [max(entry[name], 1e-4) for entry in steps], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(target, dpi=120)


def _pct(share: dict[str, Any]) -> str:
    return f"{100 * share['right'] / share['asked']:.1f} %"


def _of(pair: list[int]) -> str:
    return f"{pair[0]} of {pair[1]}"


def _parameters(weights: Path) -> str:
    from safetensors import safe_open

    with safe_open(weights, "np") as file:
        total = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return f"{total / 1e6:.2f} million"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@click.command()
@click.argument("record", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def main(record: Path, target: Path) -> None:
    """Write TARGET, the card beside the weights, from the logs and the evaluation in RECORD."""
    log = [json.loads(line) for line in (record / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    control = [json.loads(line) for line in (record / "control.jsonl").read_text(encoding="utf-8").splitlines()]
    found = json.loads((record / "evaluation.json").read_text(encoding="utf-8"))
    target.write_text(card(log, control, found, target.with_name("model.safetensors")), encoding="utf-8")
    draw_curve(log, record / "curve.png")


if __name__ == "__main__":
    main()
