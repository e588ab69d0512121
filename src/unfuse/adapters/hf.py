"""Any Hugging Face image-text or video-text model, cut at its own seams (see ``seam``)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from unfuse.adapters.hf_front import HFFront, Prompter
from unfuse.adapters.returns import Rows, count, joined, normalise, restore, shares
from unfuse.adapters.seam import (
    PIXELS,
    as_prompt,
    decoder_call,
    encoded,
    forward_start,
    generate_start,
    modalities,
    stand_in,
)
from unfuse.adapters.shared import HuggingFaceAdapter
from unfuse.adapters.structure import find_projectors, find_towers
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.language_model import LanguageModel
from unfuse.errors import CutError, FeaturesError, PromptError
from unfuse.features import Features, require_fit
from unfuse.measure.clock import span
from unfuse.measure.hooks import module_spans
from unfuse.stages import Prepared, Prompt

_SMALL: Final = 4096
"""Elements up to which a tensor of sizes or grids is kept with the features, for further questions."""

Tensors = dict[str, torch.Tensor]


class HFAdapter(HuggingFaceAdapter):
    """One loaded Hugging Face model."""

    front: HFFront
    takes_video = False
    """Whether it is shown evenly spaced frames as a video, or the middle frame as an image."""

    def __init__(
        self,
        model: Any,
        prompter: Prompter,
        fingerprint: str,
        notes: tuple[str, ...] = (),
        *,
        language: LanguageModel | None = None,
        uncut: str | None = None,
        takes_video: bool | None = None,
    ):
        self.family = str(model.config.model_type)
        self.model = model
        self.fingerprint = fingerprint
        self.notes = notes
        self.uncut = uncut
        self._language = language
        if takes_video is not None:
            self.takes_video = takes_video
        self.front = HFFront(prompter, model.config, model.dtype, takes_video=self.takes_video)
        self._vision = _vision_or_reason(model)

    @property
    def language(self) -> LanguageModel:
        """Decoder, head and embedding."""
        if self._language is None:
            raise CutError(
                f"model of family {self.family}",
                found=self.uncut,
                expected="stages that can be taken apart",
                fix="measure it with --protocol fused or --protocol hooked",
            )
        return self._language

    def upload(self, prepared: Prepared) -> Prepared:
        """See ``Adapter.upload``."""
        with span("upload"):
            placed = {name: self._placed(value) for name, value in prepared.inputs.items()}
            # The pixels are one of the inputs, and go over once.
            same = (placed[name] for name, value in prepared.inputs.items() if value is prepared.pixel_values)
            pixels = next(same, None)
            return replace(
                prepared,
                input_ids=self._placed(prepared.input_ids),
                pixel_values=self._placed(prepared.pixel_values) if pixels is None else pixels,
                inputs=placed,
            )

    def recall(self, prepared: Prepared, features: Features) -> Prepared:
        """Sizes and grids come with the features, pixels are stood in for."""
        kept = features.layout.get("inputs", {})
        own = {name: tensor for name, tensor in prepared.inputs.items() if name not in kept}
        uploaded = self.upload(replace(prepared, inputs=own))
        recalled = {name: self._recalled(value) for name, value in kept.items()}
        return replace(uploaded, inputs={**uploaded.inputs, **recalled})

    def encode(self, prepared: Prepared) -> Features:
        """Runs the model's forward up to the point where every medium is encoded."""
        return self._encoded([prepared])[0]

    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Those whose media are alike in number and size in one batch."""
        alike: dict[Hashable, list[int]] = {}
        for index, one in enumerate(prepared):
            shapes = [(name, tuple(tensor.shape)) for name, tensor in self._media_inputs(one).items()]
            alike.setdefault((one.media_tokens, one.frame_sizes, *shapes), []).append(index)
        found: dict[int, Features] = {}
        for places in alike.values():
            batch = [prepared[index] for index in places]
            found |= zip(places, self._encoded(batch), strict=True)
        return [found[index] for index in range(len(prepared))]

    @torch.no_grad()
    def _encoded(self, batch: Sequence[Prepared]) -> list[Features]:
        """Of prompts whose media are alike."""
        _ = self.language
        kinds: list[dict[str, Rows]] = [{} for _ in batch]
        if modalities(batch[0].inputs):
            alone = {"input_ids": batch[0].input_ids, **batch[0].inputs}
            arguments = alone if len(batch) == 1 else self._collated(batch)
            with module_spans(self.vision_modules()), reproducible_attention():
                outputs = encoded(self.model, arguments)
            for kind, output in outputs.items():
                for found, part in zip(kinds, shares(normalise(output), len(batch)), strict=False):
                    found[kind] = part
            if len(batch) > 1 and not all(map(_is_whole, kinds, batch)):
                return [self._encoded([one])[0] for one in batch]
        return [self._scene(one, found) for one, found in zip(batch, kinds, strict=True)]

    def _scene(self, prepared: Prepared, found: Mapping[str, Rows]) -> Features:
        """One prompt's features, by modality, with what its further questions need."""
        layout = {
            "outputs": {kind: part.form for kind, part in found.items()},
            "inputs": {name: _remembered(t) for name, t in self._media_inputs(prepared).items()} if found else {},
            "frame_sizes": [list(size) for size in prepared.frame_sizes],
            "media_tokens": prepared.media_tokens,
        }
        rows = [part.rows for part in found.values()]
        tensor = _cat(rows) if rows else self.language.embed(prepared.input_ids[0, :0])
        deeper = tuple(_cat(same) for same in zip(*(part.layers for part in found.values()), strict=True))
        return self._features(tensor, prepared, layers=deeper, layout=layout)

    @torch.no_grad()
    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Runs the model's forward from the features to the decoder's door."""
        outputs = self._outputs([(prepared, features)])
        arguments = {"input_ids": prepared.input_ids, **prepared.inputs}
        start = forward_start(self.model, arguments)
        call = decoder_call(self.model, self.language.decoder, start, outputs)
        keys: tuple[int, ...] = ()
        if digest:
            seen, media = iter(range(len(features.tensor))), self.front.media_ids
            keys = tuple(-1 - next(seen, 0) if i in media else i for i in prepared.token_ids)
        return as_prompt(call, keys=keys, features_digest=features.digest if digest else None)

    @torch.no_grad()
    def prompt_batch(self, items: Sequence[tuple[Prepared, Features]]) -> Prompt:
        """The same through ``generate``, which knows the family's positions under padding."""
        arguments = self._collated([prepared for prepared, _ in items])
        outputs = self._outputs(items)
        start = generate_start(self.model, arguments)
        call = decoder_call(self.model, self.language.decoder, start, outputs)
        return as_prompt(call, attention_mask=arguments["attention_mask"])

    def vision_modules(self) -> Mapping[str, nn.Module]:
        """Towers and projectors, found by structure."""
        if isinstance(self._vision, CutError):
            raise self._vision
        return {**self._vision[0], **self._vision[1]}

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """One batch a modality through each."""
        if isinstance(self._vision, CutError):
            raise self._vision
        return dict.fromkeys(self.vision_modules(), len(modalities(prepared.inputs)))

    def _whole_call(self, prepared: Sequence[Prepared]) -> tuple[dict[str, Any], int]:
        alone = {"input_ids": prepared[0].input_ids, **prepared[0].inputs}
        arguments = alone if len(prepared) == 1 else self._collated(prepared)
        return arguments, arguments["input_ids"].shape[1]

    def _media_inputs(self, prepared: Prepared) -> Tensors:
        """Arguments that belong to the media: all that do not run along the ids."""
        along = tuple(prepared.input_ids.shape)
        return {name: tensor for name, tensor in prepared.inputs.items() if tuple(tensor.shape) != along}

    def _recalled(self, kept: Mapping[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, kept["dtype"])
        if "values" in kept:
            return torch.tensor(kept["values"], dtype=dtype, device=self.device).view(kept["shape"])
        return stand_in(tuple(kept["shape"]), dtype, self.device)

    def _outputs(self, batch: Sequence[tuple[Prepared, Features]]) -> dict[str, Any]:
        """By modality, what ``get_<modality>_features`` would return for these prompts together."""
        rows: dict[str, list[torch.Tensor]] = {}
        layers: dict[str, list[tuple[torch.Tensor, ...]]] = {}
        forms: dict[str, list[Any]] = {}
        for prepared, features in batch:
            require_fit(features, self.expected_provenance())
            # Some families put what fits and drop the rest, without a word.
            if (given := features.layout.get("media_tokens")) != prepared.media_tokens:
                raise FeaturesError(
                    "features",
                    found=f"ones for {given} positions",
                    expected=f"{prepared.media_tokens}, as the prompt has",
                )
            scene, at = features.to(self.device), 0
            for kind, form in features.layout.get("outputs", {}).items():
                part = slice(at, at + count(form))
                rows.setdefault(kind, []).append(scene.tensor[part])
                layers.setdefault(kind, []).append(tuple(layer[part] for layer in scene.layers))
                forms.setdefault(kind, []).append(form)
                at = part.stop
            if at != len(scene.tensor):
                raise FeaturesError(
                    "features", found=f"{len(scene.tensor)} rows", expected=f"{at} as their layout says"
                )
        return {
            kind: restore(
                _cat(parts),
                tuple(_cat(same) for same in zip(*layers[kind], strict=True)),
                joined(forms[kind]),
            )
            for kind, parts in rows.items()
        }

    def _collated(self, batch: Sequence[Prepared]) -> dict[str, torch.Tensor]:
        """One set of arguments: what runs along the ids padded on the left, the rest joined."""
        longest = max(prepared.input_ids.shape[1] for prepared in batch)
        joined_inputs: dict[str, list[torch.Tensor]] = {"input_ids": [], "attention_mask": []}
        pad = self.model.generation_config.pad_token_id or 0
        names = dict.fromkeys(name for prepared in batch for name in prepared.inputs)
        for prepared in batch:
            ids = prepared.input_ids
            missing = longest - ids.shape[1]
            joined_inputs["input_ids"].append(nn.functional.pad(ids, (missing, 0), value=pad))
            mask = prepared.inputs.get("attention_mask", torch.ones_like(ids))
            joined_inputs["attention_mask"].append(nn.functional.pad(mask, (missing, 0)))
            media = self._media_inputs(prepared)
            for name in names:
                tensor = prepared.inputs.get(name)
                if name == "attention_mask":
                    continue
                if tensor is not None and name in media:
                    joined_inputs.setdefault(name, []).append(tensor)
                elif tensor is not None:
                    joined_inputs.setdefault(name, []).append(nn.functional.pad(tensor, (missing, 0)))
                elif any(name in other.inputs and name not in self._media_inputs(other) for other in batch):
                    joined_inputs.setdefault(name, []).append(ids.new_zeros(1, longest))
        try:
            return {name: torch.cat(_padded(name, parts)) for name, parts in joined_inputs.items()}
        except RuntimeError as error:
            raise PromptError("batch", found=f"media that do not join ({error})", expected="equal shapes") from None


def _padded(name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Zeros up to one shape behind the first axis, as processors pad numbers of tiles and images.

    Not frames of a video: a black frame would be one more frame.
    """
    if PIXELS.get(name) == "video":
        return tensors
    sizes = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].dim())]
    missing = [[w - h for h, w in zip(tensor.shape[1:], sizes, strict=True)] for tensor in tensors]
    return [
        nn.functional.pad(tensor, [n for more in reversed(short) for n in (0, more)]) if any(short) else tensor
        for tensor, short in zip(tensors, missing, strict=True)
    ]


def _cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One after the other; a single one as it is, without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _is_whole(found: Mapping[str, Rows], prepared: Prepared) -> bool:
    """Whether these are all rows of one of several prompts.

    Some families leave out pictures that are black all over, and then it is not known whose rows are whose. Rows of a
    video may be fewer than its positions: a family may put its newlines in later.
    """
    return found.keys() == {"video"} or sum(len(part.rows) for part in found.values()) == prepared.media_tokens


def _remembered(tensor: torch.Tensor) -> dict[str, Any]:
    """A media argument for further questions: small ones by value, pixels by shape."""
    kept: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if not tensor.is_floating_point() and tensor.numel() <= _SMALL:
        kept["values"] = tensor.flatten().tolist()
    return kept


def _vision_or_reason(model: Any) -> tuple[dict[str, nn.Module], dict[str, nn.Module]] | CutError:
    try:
        return find_towers(model), find_projectors(model)
    except CutError as error:
        return error
