"""Values between actors as rows of a table: facts as JSON, tensors as the bytes of a safetensors file.

So nothing of a scene is ever pickled, bfloat16 stays what it is, and every stage's table has the same two columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from unfuse.events import TimeWindow
from unfuse.features import Features
from unfuse.samples import Sample
from unfuse.stages import Loaded, Prepared, Provenance
from unfuse.throughput.flow import Answer
from unfuse.throughput.scenes import Asked, PreparedScene, Scene, failed_scene
from unfuse.unavailable import Unavailable

_PATHS: Final = ("event_data", "video", "video_frames", "image")


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    facts: dict[str, Any]
    """Plain JSON."""
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """On the CPU; no two share memory."""


def to_table(rows: Sequence[Row]) -> Any:
    """An Arrow table with a row for each."""
    import pyarrow
    from safetensors.torch import save

    # ASCII only: a question may hold lone surrogates, a column of text must not.
    facts = [json.dumps(row.facts) for row in rows]
    data = [save(dict(row.tensors)) if row.tensors else b"" for row in rows]
    return pyarrow.table(
        {"facts": pyarrow.array(facts, pyarrow.large_string()), "data": pyarrow.array(data, pyarrow.large_binary())}
    )


def from_table(table: Any) -> Iterator[Row]:
    """The rows of a table that ``to_table`` made."""
    from safetensors.torch import load

    for facts, data in zip(table["facts"], table["data"], strict=True):
        held = data.as_py()
        yield Row(json.loads(facts.as_py()), load(held) if held else {})


def scene_row(scene: Scene) -> Row:
    """A scene that nothing has been done to; paths as any process of the cluster finds them."""
    sample = scene.sample
    single = {name: getattr(sample, name) for name in _PATHS}
    media = {
        "sample_id": sample.sample_id,
        **{name: str(path.absolute()) for name, path in single.items() if path is not None},
        "event_image": [str(path.absolute()) for path in sample.event_image],
        "window": sample.window and asdict(sample.window),
    }
    frames = {f"frame.{i}": torch.tensor(frame) for i, frame in enumerate(sample.frames)}
    return Row({"sample": media, **_asked_facts(scene.asked)}, frames)


def scene_of(row: Row) -> Scene:
    """Of what ``scene_row`` made."""
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
    return Scene(sample=sample, asked=_asked(row.facts))


def loaded_row(asked: Sequence[Asked], loaded: Loaded | Unavailable) -> Row:
    """A scene after stage 1, or why there is none."""
    if isinstance(loaded, Unavailable):
        return Row({"failed": loaded.reason, **_asked_facts(asked)})
    names = ("media", "media_sha256", "question", "num_events", "notes")
    facts = {name: getattr(loaded, name) for name in names}
    frames = {f"frame.{i}": torch.tensor(np.asarray(frame)) for i, frame in enumerate(loaded.frames)}
    return Row({"loaded": facts, **_asked_facts(asked)}, frames)


def loaded_of(row: Row) -> tuple[tuple[Asked, ...], Loaded | Unavailable]:
    """Of what ``loaded_row`` made."""
    asked = _asked(row.facts)
    if "failed" in row.facts:
        return asked, Unavailable(str(row.facts["failed"]))
    facts = {**row.facts["loaded"], "notes": tuple(row.facts["loaded"]["notes"])}
    frames = [tensor.numpy() for tensor in _numbered(row.tensors, "frame")]
    for frame in frames:
        frame.flags.writeable = False
    return asked, Loaded(frames=frames, **facts)


def prepared_row(scene: PreparedScene) -> Row:
    """A scene after stage 2, or after stage 3 where it has features."""
    facts: dict[str, Any] = {**_asked_facts(scene.asked), "media_sha256": scene.media_sha256, "prompts": []}
    tensors: dict[str, torch.Tensor] = {}
    for number, prompt in enumerate(scene.prompts):
        if isinstance(prompt, Unavailable):
            facts["prompts"].append({"failed": prompt.reason})
            continue
        named = {f"input.{name}": tensor for name, tensor in prompt.inputs.items()}
        named |= {"ids": prompt.input_ids, "pixels": prompt.pixel_values}
        held, same = _apart(named)
        tensors |= {f"prompt.{number}.{name}": tensor for name, tensor in held.items()}
        facts["prompts"].append({**_prompt_facts(prompt), "same": same, "names": list(named)})
    if scene.features is not None:
        features = scene.features
        tensors["features"] = _alone(features.tensor)
        tensors |= {f"layer.{i}": _alone(layer) for i, layer in enumerate(features.layers)}
        facts["features"] = {"provenance": asdict(features.provenance), "layout": dict(features.layout)}
    return Row(facts, tensors)


def prepared_of(row: Row) -> PreparedScene:
    """Of what ``prepared_row`` made."""
    facts = row.facts
    if "failed" in facts:
        return failed_scene(_asked(facts), facts["failed"])
    prompts = tuple(
        Unavailable(prompt["failed"]) if "failed" in prompt else _prompt(prompt, row.tensors, number)
        for number, prompt in enumerate(facts["prompts"])
    )
    features = None
    if (found := facts.get("features")) is not None:
        provenance = Provenance(**{**found["provenance"], "shape": tuple(found["provenance"]["shape"])})
        layers = tuple(_numbered(row.tensors, "layer"))
        features = Features(row.tensors["features"], provenance, layers, found["layout"])
    return PreparedScene(asked=_asked(facts), prompts=prompts, media_sha256=facts["media_sha256"], features=features)


def without_pixels(prompt: Prepared, features: Features) -> Prepared:
    """What of a prompt stage 4 still needs: ``Adapter.recall`` brings the rest out of the features."""
    kept = features.layout.get("inputs", {})
    return replace(
        prompt,
        pixel_values=prompt.pixel_values.new_empty(0),
        inputs={name: tensor for name, tensor in prompt.inputs.items() if name not in kept},
    )


def answers_row(answers: Sequence[Answer]) -> Row:
    """What became of a scene's questions."""
    return Row({"answers": [asdict(answer) for answer in answers]})


def answers_of(row: Row) -> Iterator[Answer]:
    """Of what ``answers_row`` made."""
    for facts in row.facts["answers"]:
        yield Answer(**{**facts, "asked": Asked(**facts["asked"]), "token_ids": tuple(facts["token_ids"])})


def _asked_facts(asked: Sequence[Asked]) -> dict[str, Any]:
    return {"asked": [[each.sample_id, each.question] for each in asked]}


def _asked(facts: Mapping[str, Any]) -> tuple[Asked, ...]:
    return tuple(Asked(sample_id=name, question=question) for name, question in facts["asked"])


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


def _apart(named: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and the names of those that are another: pixels are among a family's inputs as well."""
    first: dict[int, str] = {}
    held: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    for name, tensor in named.items():
        if id(tensor) in first:
            same[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            held[name] = _alone(tensor)
    return held, same


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in memory that holds nothing else."""
    here = tensor.detach().cpu().contiguous()
    whole = here.untyped_storage().nbytes() == here.numel() * here.element_size()
    return here if whole else here.clone()


def _numbered(tensors: Mapping[str, torch.Tensor], what: str) -> Iterator[torch.Tensor]:
    index = 0
    while (tensor := tensors.get(f"{what}.{index}")) is not None:
        yield tensor
        index += 1
