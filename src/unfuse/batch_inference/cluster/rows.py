"""Rows of the tables between actors: facts as JSON, tensors as the bytes of a safetensors file.

No scene is pickled, bfloat16 keeps its type, and the tables of all stages have the same two columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.scenes import PreparedScene, SceneQuestions, failed_scene
from unfuse.events import TimeWindow
from unfuse.features import Features
from unfuse.samples import Question, Sample
from unfuse.stages import Generation, Loaded, Prepared, Provenance
from unfuse.unavailable import Unavailable

_PATHS: Final = ("event_data", "video", "video_frames", "image")


@dataclass(frozen=True, slots=True)
class SceneRow:
    """One row of a table."""

    facts: dict[str, Any]
    """Plain JSON."""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """On the CPU; no two share memory."""


def to_table(rows: Sequence[SceneRow]) -> Any:
    """Write rows to an Arrow table."""
    import pyarrow
    from safetensors.torch import save

    # ASCII only: a question may hold lone surrogates, a column of text must not.
    facts = [json.dumps(row.facts) for row in rows]
    data = [save(dict(row.tensors)) if row.tensors else b"" for row in rows]
    return pyarrow.table(
        {"facts": pyarrow.array(facts, pyarrow.large_string()), "data": pyarrow.array(data, pyarrow.large_binary())}
    )


def from_table(table: Any) -> Iterator[SceneRow]:
    """Read the rows of a table from ``to_table``."""
    from safetensors.torch import load

    for facts, data in zip(table["facts"], table["data"], strict=True):
        content = data.as_py()
        yield SceneRow(json.loads(facts.as_py()), load(content) if content else {})


def scene_row(scene: SceneQuestions) -> SceneRow:
    """Write a scene before stage 1, with absolute paths."""
    sample = scene.sample
    single = {name: getattr(sample, name) for name in _PATHS}
    media = {
        "sample_id": sample.sample_id,
        **{name: str(path.absolute()) for name, path in single.items() if path is not None},
        "event_image": [str(path.absolute()) for path in sample.event_image],
        "window": sample.window and asdict(sample.window),
    }
    frames = {f"frame.{i}": torch.tensor(frame) for i, frame in enumerate(sample.frames)}
    return SceneRow({"sample": media, **_question_facts(scene.questions)}, frames)


def scene_of(row: SceneRow) -> SceneQuestions:
    """Read the row of ``scene_row``."""
    media: dict[str, Any] = dict(row.facts["sample"])
    window, images = media.pop("window"), media.pop("event_image")
    name = media.pop("sample_id")
    paths: dict[str, Any] = {key: Path(path) for key, path in media.items()}
    sample = Sample(
        sample_id=name,
        window=window and TimeWindow(**window),
        event_image=tuple(Path(path) for path in images),
        frames=tuple(tensor.numpy() for tensor in _numbered(row.tensors, "frame")),
        **paths,
    )
    return SceneQuestions(sample=sample, questions=_questions(row.facts))


def loaded_row(questions: Sequence[Question], loaded: Loaded | Unavailable) -> SceneRow:
    """Write a scene after stage 1, or the reason why there is none."""
    if isinstance(loaded, Unavailable):
        return SceneRow({"failed": loaded.reason, **_question_facts(questions)})
    names = ("media", "media_sha256", "question", "num_events", "notes")
    facts = {name: getattr(loaded, name) for name in names}
    frames = {f"frame.{i}": torch.tensor(np.asarray(frame)) for i, frame in enumerate(loaded.frames)}
    return SceneRow({"loaded": facts, **_question_facts(questions)}, frames)


def loaded_of(row: SceneRow) -> tuple[tuple[Question, ...], Loaded | Unavailable]:
    """Read the row of ``loaded_row``."""
    questions = _questions(row.facts)
    if "failed" in row.facts:
        return questions, Unavailable(str(row.facts["failed"]))
    facts = {**row.facts["loaded"], "notes": tuple(row.facts["loaded"]["notes"])}
    frames = [tensor.numpy() for tensor in _numbered(row.tensors, "frame")]
    for frame in frames:
        frame.flags.writeable = False
    return questions, Loaded(frames=frames, **facts)


def prepared_row(scene: PreparedScene) -> SceneRow:
    """Write a scene after stage 2, or after stage 3 if it has features."""
    facts: dict[str, Any] = {**_question_facts(scene.questions), "media_sha256": scene.media_sha256, "prompts": []}
    tensors: dict[str, torch.Tensor] = {}
    for number, prompt in enumerate(scene.prompts):
        if isinstance(prompt, Unavailable):
            facts["prompts"].append({"failed": prompt.reason})
            continue
        named = {f"input.{name}": tensor for name, tensor in prompt.inputs.items()}
        named |= {"ids": prompt.input_ids, "pixels": prompt.pixel_values}
        unique, same = _unique(named)
        tensors |= {f"prompt.{number}.{name}": tensor for name, tensor in unique.items()}
        facts["prompts"].append({**_prompt_facts(prompt), "same": same, "names": list(named)})
    if scene.features is not None:
        features = scene.features
        tensors["features"] = _unshared(features.tensor)
        tensors |= {f"layer.{i}": _unshared(layer) for i, layer in enumerate(features.layers)}
        facts["features"] = {"provenance": asdict(features.provenance), "layout": dict(features.layout)}
    return SceneRow(facts, tensors)


def prepared_of(row: SceneRow) -> PreparedScene:
    """Read the row of ``prepared_row``."""
    facts = row.facts
    if "failed" in facts:
        return failed_scene(_questions(facts), facts["failed"])
    prompts = tuple(
        Unavailable(prompt["failed"]) if "failed" in prompt else _prompt(prompt, row.tensors, number)
        for number, prompt in enumerate(facts["prompts"])
    )
    features = None
    if (found := facts.get("features")) is not None:
        provenance = Provenance(**{**found["provenance"], "shape": tuple(found["provenance"]["shape"])})
        layers = tuple(_numbered(row.tensors, "layer"))
        features = Features(row.tensors["features"], provenance, layers, found["layout"])
    return PreparedScene(
        questions=_questions(facts), prompts=prompts, media_sha256=facts["media_sha256"], features=features
    )


def without_pixels(prompt: Prepared, features: Features) -> Prepared:
    """Drop the inputs that ``Adapter.rebuild_inputs`` restores from the features."""
    restored = features.layout.get("inputs", {})
    return replace(
        prompt,
        pixel_values=prompt.pixel_values.new_empty(0),
        inputs={name: tensor for name, tensor in prompt.inputs.items() if name not in restored},
    )


def answers_row(answers: Sequence[Answer]) -> SceneRow:
    """Write the answers of one scene."""
    return SceneRow({"answers": [asdict(answer) for answer in answers]})


def answers_of(row: SceneRow) -> Iterator[Answer]:
    """Read the row of ``answers_row``."""
    for facts in row.facts["answers"]:
        found = facts["generation"]
        failed = "reason" in found
        generation = Unavailable(**found) if failed else Generation(**{**found, "token_ids": tuple(found["token_ids"])})
        yield Answer(**{**facts, "question": Question(**facts["question"]), "generation": generation})


def _question_facts(questions: Sequence[Question]) -> dict[str, Any]:
    return {"questions": [[each.question_id, each.text] for each in questions]}


def _questions(facts: Mapping[str, Any]) -> tuple[Question, ...]:
    return tuple(Question(question_id=name, text=text) for name, text in facts["questions"])


def _prompt_facts(prompt: Prepared) -> dict[str, Any]:
    names = ("media_sha256", "question", "num_frames", "text_tokens", "media_tokens", "frame_sizes", "token_ids")
    return {name: getattr(prompt, name) for name in names}


def _prompt(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], number: int) -> Prepared:
    facts = dict(facts)
    same, names = facts.pop("same"), facts.pop("names")
    named = {name: tensors[f"prompt.{number}.{same.get(name, name)}"] for name in names}
    return Prepared(
        input_ids=named.pop("ids"),
        pixel_values=named.pop("pixels"),
        inputs={name.removeprefix("input."): tensor for name, tensor in named.items()},
        **{
            **facts,
            "frame_sizes": tuple((height, width) for height, width in facts["frame_sizes"]),
            "token_ids": tuple(facts["token_ids"]),
        },
    )


def _unique(named: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return each tensor once, and aliases by name: a family's inputs contain the pixel values again."""
    first: dict[int, str] = {}
    unique: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    for name, tensor in named.items():
        if id(tensor) in first:
            same[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            unique[name] = _unshared(tensor)
    return unique, same


def _unshared(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the CPU, in memory of its own."""
    here = tensor.detach().cpu().contiguous()
    whole = here.untyped_storage().nbytes() == here.numel() * here.element_size()
    return here if whole else here.clone()


def _numbered(tensors: Mapping[str, torch.Tensor], what: str) -> Iterator[torch.Tensor]:
    index = 0
    while (tensor := tensors.get(f"{what}.{index}")) is not None:
        yield tensor
        index += 1
