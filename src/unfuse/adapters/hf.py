"""Any Hugging Face image-text or video-text model, split inside its own forward (see ``split_point``)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn

from unfuse.adapters.expected_work import CONFIG, Mover, on_meta
from unfuse.adapters.feature_rows import FeatureRows, count, join_forms, normalise, restore, split_equally
from unfuse.adapters.hf_preprocessor import HFPreprocessor, Processor
from unfuse.adapters.media import Takes
from unfuse.adapters.split_point import (
    PIXELS,
    forward_start,
    generate_start,
    modalities,
    placeholder,
    prompt_from_call,
    run_to_decoder,
    run_to_features,
)
from unfuse.adapters.structure import find_projectors, find_towers
from unfuse.adapters.transformers_adapter import TransformersAdapter
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.language_model import LanguageModel
from unfuse.errors import CutError, FeaturesError, PromptError
from unfuse.features import Features, require_fit
from unfuse.measure.clock import span
from unfuse.measure.hooks import module_spans
from unfuse.measure.products import Products, counting_this_thread
from unfuse.stages import Prepared, Prompt
from unfuse.unavailable import Unavailable

_MAX_STORED: Final = 4096
"""Elements of a tensor of sizes or grids that is stored with the features, for further questions."""

Tensors = dict[str, torch.Tensor]


class HFAdapter(TransformersAdapter):
    """One loaded Hugging Face model."""

    preprocessor: HFPreprocessor
    preprocessor_class: ClassVar[type[HFPreprocessor]] = HFPreprocessor
    """Class of the preprocessor, also in processes that have no weights."""
    takes_video = False
    """Whether the model gets evenly spaced frames as a video, or the middle frame as an image."""

    def __init__(
        self,
        model: Any,
        processor: Processor,
        fingerprint: str,
        notes: tuple[str, ...] = (),
        *,
        language: LanguageModel | Unavailable,
        takes_video: bool | None = None,
    ):
        """Create the adapter.

        Args:
            model: the Hugging Face model.
            processor: the family's processor.
            fingerprint: fingerprint of the model.
            notes: notes for reports.
            language: the text side, or the reason why the model cannot be split.
            takes_video: overrides the attribute of the class.
        """
        self.family = str(model.config.model_type)
        self.model = model
        self.fingerprint = fingerprint
        self.notes = notes
        self.unsplittable = language if isinstance(language, Unavailable) else None
        self._language = language
        if takes_video is not None:
            self.takes_video = takes_video
        self.preprocessor = self.preprocessor_class(processor, model.config, model.dtype, takes_video=self.takes_video)
        self._vision = _vision_or_reason(model)

    @classmethod
    def own_processor(cls, folder: Path, config: Any) -> Processor | None:
        """Return a processor that replaces the checkpoint's own; None to keep that.

        Args:
            folder: the checkpoint.
            config: config of the model.
        """
        return None

    @property
    def takes(self) -> Takes:
        """See ``Adapter.takes``."""
        return "video" if self.takes_video else "image"

    @property
    def language(self) -> LanguageModel:
        """Decoder, head and embedding."""
        return self._require_language()

    def _require_language(self) -> LanguageModel:
        """Return the text side.

        Raises:
            CutError: the model cannot be split.
        """
        if isinstance(self._language, Unavailable):
            raise CutError(
                f"model of family {self.family}",
                found=self._language.reason,
                expected="stages that can be split",
                fix="measure it with --protocol fused or --protocol hooked",
            )
        return self._language

    def upload(self, prepared: Prepared) -> Prepared:
        """See ``Adapter.upload``."""
        with span("upload"):
            uploaded = {name: self._to_device(value) for name, value in prepared.inputs.items()}
            # The pixels are one of the inputs, and are copied once.
            pixel_inputs = (uploaded[name] for name, value in prepared.inputs.items() if value is prepared.pixel_values)
            pixels = next(pixel_inputs, None)
            return replace(
                prepared,
                input_ids=self._to_device(prepared.input_ids),
                pixel_values=self._to_device(prepared.pixel_values) if pixels is None else pixels,
                inputs=uploaded,
            )

    def rebuild_inputs(self, prepared: Prepared, features: Features) -> Prepared:
        """Take sizes and grids from the features; pixels become placeholders of their shape."""
        stored = features.layout.get("inputs", {})
        own = {name: tensor for name, tensor in prepared.inputs.items() if name not in stored}
        uploaded = self.upload(replace(prepared, inputs=own))
        rebuilt = {name: self._rebuilt(value) for name, value in stored.items()}
        return replace(uploaded, inputs={**uploaded.inputs, **rebuilt})

    def encode(self, prepared: Prepared) -> Features:
        """Run the model's forward up to split point 1: every medium is then encoded."""
        return self._encode_group([prepared])[0]

    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Encode samples in one batch if their media have equal number and sizes."""
        groups: dict[Hashable, list[int]] = {}
        for index, one in enumerate(prepared):
            shapes = [(name, tuple(tensor.shape)) for name, tensor in self._media_inputs(one).items()]
            groups.setdefault((one.media_tokens, one.frame_sizes, *shapes), []).append(index)
        encoded: dict[int, Features] = {}
        for indices in groups.values():
            batch = [prepared[index] for index in indices]
            encoded |= zip(indices, self._encode_group(batch), strict=True)
        return [encoded[index] for index in range(len(prepared))]

    @torch.no_grad()
    def _encode_group(self, batch: Sequence[Prepared]) -> list[Features]:
        """Encode prompts; their media must have equal number and sizes."""
        self._require_language()
        rows: list[dict[str, FeatureRows]] = [{} for _ in batch]
        if modalities(batch[0].inputs):
            single = {"input_ids": batch[0].input_ids, **batch[0].inputs}
            arguments = single if len(batch) == 1 else self._collated(batch)
            with module_spans(self.vision_modules()), reproducible_attention():
                outputs = run_to_features(self.model, arguments)
            for kind, output in outputs.items():
                for by_kind, part in zip(rows, split_equally(normalise(output), len(batch)), strict=False):
                    by_kind[kind] = part
            if len(batch) > 1 and not all(map(_is_complete, rows, batch)):
                return [self._encode_group([one])[0] for one in batch]
        return [self._with_layout(one, by_kind) for one, by_kind in zip(batch, rows, strict=True)]

    def _with_layout(self, prepared: Prepared, rows: Mapping[str, FeatureRows]) -> Features:
        """Return the features of one prompt, with the layout that its further questions need."""
        layout = {
            "outputs": {kind: part.form for kind, part in rows.items()},
            "inputs": {name: _stored(t) for name, t in self._media_inputs(prepared).items()} if rows else {},
            "frame_sizes": [list(size) for size in prepared.frame_sizes],
            "media_tokens": prepared.media_tokens,
        }
        tensors = [part.rows for part in rows.values()]
        tensor = _cat(tensors) if tensors else self.language.embed(prepared.input_ids[0, :0])
        layers = tuple(_cat(layer) for layer in zip(*(part.layers for part in rows.values()), strict=True))
        return self._features(tensor, prepared, layers=layers, layout=layout)

    @torch.no_grad()
    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Run the model's forward from the features to split point 2."""
        outputs = self._outputs([(prepared, features)])
        arguments = {"input_ids": prepared.input_ids, **prepared.inputs}
        start = forward_start(self.model, arguments)
        call = run_to_decoder(self.model, self.language.decoder, start, outputs)
        keys: tuple[int, ...] = ()
        if digest:
            positions, media = iter(range(len(features.tensor))), self.preprocessor.media_ids
            keys = tuple(-1 - next(positions, 0) if i in media else i for i in prepared.token_ids)
        return prompt_from_call(call, keys=keys, features_digest=features.digest if digest else None)

    @torch.no_grad()
    def prompt_batch(self, items: Sequence[tuple[Prepared, Features]]) -> Prompt:
        """Run ``generate`` to split point 2, since it computes the family's positions under padding."""
        arguments = self._collated([prepared for prepared, _ in items])
        outputs = self._outputs(items)
        start = generate_start(self.model, arguments)
        call = run_to_decoder(self.model, self.language.decoder, start, outputs)
        return prompt_from_call(call, attention_mask=arguments["attention_mask"])

    def vision_modules(self) -> Mapping[str, nn.Module]:
        """See ``Adapter.vision_modules``; found by structure."""
        if isinstance(self._vision, CutError):
            raise self._vision
        return {**self._vision[0], **self._vision[1]}

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """Return the number of modalities for each module: each modality is one batch."""
        if isinstance(self._vision, CutError):
            raise self._vision
        return dict.fromkeys(self.vision_modules(), len(modalities(prepared.inputs)))

    def _encode_work(self, prepared: Prepared) -> tuple[Products, str]:
        if not modalities(prepared.inputs):
            return Products(), CONFIG
        arguments = {"input_ids": prepared.input_ids, **prepared.inputs}

        def count(network: Any, move: Mover) -> Products:
            with counting_this_thread() as found, torch.no_grad():
                run_to_features(network, move(arguments))
            return found.products

        return on_meta(self.model, count)

    def _fused_arguments(self, prepared: Sequence[Prepared]) -> tuple[dict[str, Any], int]:
        single = {"input_ids": prepared[0].input_ids, **prepared[0].inputs}
        arguments = single if len(prepared) == 1 else self._collated(prepared)
        return arguments, arguments["input_ids"].shape[1]

    def _media_inputs(self, prepared: Prepared) -> Tensors:
        """Return the arguments that belong to the media: all that do not have the shape of the ids."""
        ids_shape = tuple(prepared.input_ids.shape)
        return {name: tensor for name, tensor in prepared.inputs.items() if tuple(tensor.shape) != ids_shape}

    def _rebuilt(self, stored: Mapping[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, stored["dtype"])
        if "values" in stored:
            return torch.tensor(stored["values"], dtype=dtype, device=self.device).view(stored["shape"])
        return placeholder(tuple(stored["shape"]), dtype, self.device)

    def _outputs(self, batch: Sequence[tuple[Prepared, Features]]) -> dict[str, Any]:
        """Return, by modality, the output of ``get_<modality>_features`` for a batch of prompts."""
        rows: dict[str, list[torch.Tensor]] = {}
        layers: dict[str, list[tuple[torch.Tensor, ...]]] = {}
        forms: dict[str, list[Any]] = {}
        for prepared, features in batch:
            require_fit(features, self.expected_provenance())
            # Some families silently drop features that do not fit.
            if (given := features.layout.get("media_tokens")) != prepared.media_tokens:
                raise FeaturesError(
                    "features",
                    found=f"ones for {given} positions",
                    expected=f"{prepared.media_tokens}, as the prompt has",
                )
            scene, start = features.to(self.device), 0
            for kind, form in features.layout.get("outputs", {}).items():
                part = slice(start, start + count(form))
                rows.setdefault(kind, []).append(scene.tensor[part])
                layers.setdefault(kind, []).append(tuple(layer[part] for layer in scene.layers))
                forms.setdefault(kind, []).append(form)
                start = part.stop
            if start != len(scene.tensor):
                raise FeaturesError(
                    "features", found=f"{len(scene.tensor)} rows", expected=f"{start} as their layout says"
                )
        return {
            kind: restore(
                _cat(parts),
                tuple(_cat(layer) for layer in zip(*layers[kind], strict=True)),
                join_forms(forms[kind]),
            )
            for kind, parts in rows.items()
        }

    def _collated(self, batch: Sequence[Prepared]) -> dict[str, torch.Tensor]:
        """Collate a batch: pad arguments with the shape of the ids on the left, and concatenate the others."""
        longest = max(prepared.input_ids.shape[1] for prepared in batch)
        collated: dict[str, list[torch.Tensor]] = {"input_ids": [], "attention_mask": []}
        pad = self.model.generation_config.pad_token_id or 0
        names = dict.fromkeys(name for prepared in batch for name in prepared.inputs)
        for prepared in batch:
            ids = prepared.input_ids
            padding = longest - ids.shape[1]
            collated["input_ids"].append(nn.functional.pad(ids, (padding, 0), value=pad))
            mask = prepared.inputs.get("attention_mask", torch.ones_like(ids))
            collated["attention_mask"].append(nn.functional.pad(mask, (padding, 0)))
            media = self._media_inputs(prepared)
            for name in names:
                tensor = prepared.inputs.get(name)
                if name == "attention_mask":
                    continue
                if tensor is not None and name in media:
                    collated.setdefault(name, []).append(tensor)
                elif tensor is not None:
                    collated.setdefault(name, []).append(nn.functional.pad(tensor, (padding, 0)))
                elif any(name in other.inputs and name not in self._media_inputs(other) for other in batch):
                    collated.setdefault(name, []).append(ids.new_zeros(1, longest))
        try:
            return {name: torch.cat(_padded(name, parts)) for name, parts in collated.items()}
        except RuntimeError as error:
            raise PromptError("batch", found=f"media that do not join ({error})", expected="equal shapes") from None


def _padded(name: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Pad with zeros to one shape after the first axis, as processors pad numbers of tiles and images.

    A video is not padded: a black frame would be one more frame.
    """
    if PIXELS.get(name) == "video":
        return tensors
    sizes = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].dim())]
    padding = [[w - h for h, w in zip(tensor.shape[1:], sizes, strict=True)] for tensor in tensors]
    return [
        nn.functional.pad(tensor, [n for more in reversed(short) for n in (0, more)]) if any(short) else tensor
        for tensor, short in zip(tensors, padding, strict=True)
    ]


def _cat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors; return a single one without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _is_complete(rows: Mapping[str, FeatureRows], prepared: Prepared) -> bool:
    """Return whether a prompt of a batch got all of its rows.

    Some families drop images that are black all over, and then rows cannot be assigned to prompts. A video may have
    fewer rows than positions: a family may insert its newlines later.
    """
    return rows.keys() == {"video"} or sum(len(part.rows) for part in rows.values()) == prepared.media_tokens


def _stored(tensor: torch.Tensor) -> dict[str, Any]:
    """Return a media argument as JSON, for further questions: small tensors by value, pixels by shape."""
    stored: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if not tensor.is_floating_point() and tensor.numel() <= _MAX_STORED:
        stored["values"] = tensor.flatten().tolist()
    return stored


def _vision_or_reason(model: Any) -> tuple[dict[str, nn.Module], dict[str, nn.Module]] | CutError:
    try:
        return find_towers(model), find_projectors(model)
    except CutError as error:
        return error
