"""Adapter of EventGPT: tower, projector, adaptor and pooling are ``encode``; Stage 4 runs the LLaMA alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from unfuse.adapters.eventgpt_preprocessor import EventGPTPreprocessor
from unfuse.adapters.expected_work import CONFIG, clip_tower, layers
from unfuse.adapters.media import Takes
from unfuse.adapters.transformers_adapter import TransformersAdapter
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.language_model import LanguageModel, end_ids
from unfuse.errors import FeaturesError
from unfuse.features import Features, require_fit
from unfuse.measure.clock import span
from unfuse.measure.hooks import module_spans
from unfuse.measure.products import Products
from unfuse.models.eventgpt import EventChatModel
from unfuse.models.eventgpt.prompt import EVENT_INDEX
from unfuse.stages import Prepared, Prompt
from unfuse.unavailable import Unavailable


class EventGPTAdapter(TransformersAdapter):
    """One loaded EventGPT."""

    family = "eventgpt"
    takes: Takes = "events"
    preprocessor: EventGPTPreprocessor
    unsplittable: Unavailable | None = None

    def __init__(
        self, model: EventChatModel, preprocessor: EventGPTPreprocessor, fingerprint: str, notes: tuple[str, ...] = ()
    ):
        self.model = model
        self.preprocessor = preprocessor
        self.fingerprint = fingerprint
        self.notes = (*notes, *preprocessor.notes)

    @property
    def language(self) -> LanguageModel:
        """The LLaMA. Its module also contains the tower."""
        model = self.model
        return LanguageModel(model.model, model.lm_head, model.get_input_embeddings(), end_ids(model))

    def upload(self, prepared: Prepared) -> Prepared:
        """See ``Adapter.upload``."""
        with span("upload"):
            return replace(
                prepared,
                input_ids=self._to_device(prepared.input_ids),
                pixel_values=self._to_device(prepared.pixel_values),
            )

    def rebuild_inputs(self, prepared: Prepared, features: Features) -> Prepared:
        """Upload the ids: a prompt of EventGPT has no other input beside the features."""
        return self.upload(prepared)

    def encode(self, prepared: Prepared) -> Features:
        """See ``Adapter.encode``."""
        return self.encode_batch([prepared])[0]

    @torch.no_grad()
    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Run all frames of all samples in one batch through tower and projector, and pool each sample separately."""
        network = self.model.model
        pixels = [one.pixel_values for one in prepared]
        with module_spans(self.vision_modules()), reproducible_attention():
            projected = network.visual_projector(
                network.visual_tower(pixels[0] if len(pixels) == 1 else torch.cat(pixels))
            )
        with span("pooling"):
            pooled = [network.finish_features(frames) for frames in projected.split([len(one) for one in pixels])]
        return [self._features(scene, one) for scene, one in zip(pooled, prepared, strict=True)]

    @torch.no_grad()
    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Replace the placeholder ``-200`` by the features."""
        index = self._placeholder_index(prepared, features)
        embeds = functools.partial(self._embeds, prepared.input_ids, features.tensor, index)
        if not digest:
            return Prompt(inputs_embeds=embeds())
        text = _token_ids(prepared)
        keys = text[:index] + _feature_keys(len(features.tensor)) + text[index + 1 :]
        return Prompt(inputs_embeds=embeds, token_keys=keys, features_digest=features.digest)

    @torch.no_grad()
    def prompt_batch(self, items: Sequence[tuple[Prepared, Features]]) -> Prompt:
        """See ``Adapter.prompt_batch``."""
        rows = [
            self._embeds(prepared.input_ids, features.tensor, self._placeholder_index(prepared, features))[0]
            for prepared, features in items
        ]
        longest = max(len(row) for row in rows)
        embeds = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([_left_mask(len(row), longest, self.device) for row in rows])
        return Prompt(inputs_embeds=embeds, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))

    def vision_modules(self) -> Mapping[str, nn.Module]:
        """Return tower and projector. Adaptor and pooling are timed as the span ``pooling``."""
        network = self.model.model
        return {"tower": network.visual_tower.visual_tower, "projector": network.visual_projector}

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """Return 1 for each module: the frames are one batch."""
        return dict.fromkeys(self.vision_modules(), 1)

    def _fused_arguments(self, prepared: Sequence[Prepared]) -> tuple[dict[str, Any], int]:
        """Return the published call ``generate(event_tensors=...)`` for one prompt, Hugging Face's for a batch."""
        if len(prepared) == 1:
            return {"input_ids": prepared[0].input_ids, "event_tensors": list(prepared[0].pixel_values)}, 0
        arguments = self._batch_arguments(prepared)
        return arguments, arguments["input_ids"].shape[1]

    def feature_positions(self, prepared: Prepared) -> slice | None:
        """Return the positions that the placeholder becomes."""
        index = _token_ids(prepared).index(EVENT_INDEX)
        return slice(index, index + prepared.media_tokens)

    def _encode_work(self, prepared: Prepared) -> tuple[Products, str]:
        config, frames = self.model.config, prepared.num_frames
        vision, width, positions = config.vision_config, config.hidden_size, config.num_patches
        tower = clip_tower(vision, frames)
        assert tower is not None, "EventGPT has a CLIP tower"
        projector = layers(frames * positions, (vision.hidden_size, width), (width, width))
        # The adaptor runs on the pooled rows, see ``finish_features``.
        adaptor = layers(frames + positions, (width, width)) if config.event_feature_adaptor else Products()
        return tower + projector + adaptor, CONFIG

    def _placeholder_index(self, prepared: Prepared, features: Features) -> int:
        """Return the index of the placeholder, after checking that the features fit."""
        require_fit(features, self.expected_provenance())
        if prepared.media_tokens != features.tensor.shape[0]:
            raise FeaturesError(
                "features", found=f"{features.tensor.shape[0]} positions", expected=f"{prepared.media_tokens}"
            )
        return _token_ids(prepared).index(EVENT_INDEX)

    @torch.no_grad()
    def _embeds(self, input_ids: torch.Tensor, features: torch.Tensor, index: int) -> torch.Tensor:
        """Return the embeddings ``[1, L, H]`` with the features in place."""
        # One look-up, the placeholder as any id: a second launch would cost the host more than the device saves.
        text = self.model.get_input_embeddings()(input_ids[0].clamp(min=0))
        return torch.cat([text[:index], features.to(self.device), text[index + 1 :]])[None]

    def _batch_arguments(self, batch: Sequence[Prepared]) -> dict[str, Any]:
        """Return Hugging Face's arguments: ``<ev_patch>`` once per feature position, padded on the left."""
        rows = []
        for prepared in batch:
            ids = prepared.input_ids[0]
            index = _token_ids(prepared).index(EVENT_INDEX)
            patches = ids.new_full((prepared.media_tokens,), self.model.config.placeholder_id)
            rows.append(torch.cat([ids[:index], patches, ids[index + 1 :]]))
        longest = max(len(row) for row in rows)
        return {
            "input_ids": torch.stack([nn.functional.pad(row, (longest - len(row), 0)) for row in rows]),
            "attention_mask": torch.stack([_left_mask(len(row), longest, self.device) for row in rows]),
            "pixel_values": torch.stack([prepared.pixel_values for prepared in batch]),
        }


def _token_ids(prepared: Prepared) -> tuple[int, ...]:
    return prepared.token_ids or tuple(prepared.input_ids[0].tolist())


@functools.cache
def _feature_keys(rows: int) -> tuple[int, ...]:
    """Return the keys of so many feature positions, see ``Prompt.token_keys``."""
    return tuple(range(-1, -1 - rows, -1))


def _left_mask(length: int, longest: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(longest, device=device) >= longest - length).long()
