"""EventGPT, cut: tower, projector, adaptor and pooling in ``encode``; the LLaMA alone in Stage 4."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from unfuse.adapters.eventgpt_front import EventGPTFront
from unfuse.adapters.shared import HuggingFaceAdapter
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.language_model import LanguageModel, end_ids
from unfuse.errors import FeaturesError
from unfuse.features import Features, require_fit
from unfuse.measure.clock import span
from unfuse.measure.hooks import module_spans
from unfuse.models.eventgpt import EventChatModel
from unfuse.models.eventgpt.prompt import EVENT_INDEX
from unfuse.stages import Prepared, Prompt


class EventGPTAdapter(HuggingFaceAdapter):
    """One loaded EventGPT."""

    family = "eventgpt"
    front: EventGPTFront

    def __init__(self, model: EventChatModel, front: EventGPTFront, fingerprint: str, notes: tuple[str, ...] = ()):
        self.model = model
        self.front = front
        self.fingerprint = fingerprint
        self.notes = (*notes, *front.notes)
        self.uncut: str | None = None

    @property
    def language(self) -> LanguageModel:
        """The LLaMA; it is the network that also holds the tower."""
        model = self.model
        return LanguageModel(model.model, model.lm_head, model.get_input_embeddings(), end_ids(model))

    def upload(self, prepared: Prepared) -> Prepared:
        """See ``Adapter.upload``."""
        with span("upload"):
            return replace(
                prepared,
                input_ids=self._placed(prepared.input_ids),
                pixel_values=self._placed(prepared.pixel_values),
            )

    def recall(self, prepared: Prepared, features: Features) -> Prepared:
        """Nothing but ids."""
        return self.upload(prepared)

    def encode(self, prepared: Prepared) -> Features:
        """All frames in one batch through tower, projector, adaptor and pooling."""
        return self.encode_batch([prepared])[0]

    @torch.no_grad()
    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """All frames of all samples in one batch through tower and projector; then each sample's for themselves."""
        network = self.model.model
        pixels = [one.pixel_values for one in prepared]
        with module_spans(self.vision_modules()), reproducible_attention():
            projected = network.visual_projector(
                network.visual_tower(pixels[0] if len(pixels) == 1 else torch.cat(pixels))
            )
        with span("pooling"):
            scenes = [network.finish_features(frames) for frames in projected.split([len(one) for one in pixels])]
        return [self._features(scene, one) for scene, one in zip(scenes, prepared, strict=True)]

    @torch.no_grad()
    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Replaces ``-200`` by the features."""
        at = self._place(prepared, features)
        put_together = functools.partial(self._embeds, prepared.input_ids, features.tensor, at)
        if not digest:
            return Prompt(inputs_embeds=put_together())
        text = _on_host(prepared)
        keys = text[:at] + _keys(len(features.tensor)) + text[at + 1 :]
        return Prompt(inputs_embeds=put_together, token_keys=keys, features_digest=features.digest)

    @torch.no_grad()
    def prompt_batch(self, items: Sequence[tuple[Prepared, Features]]) -> Prompt:
        """The same for several prompts."""
        rows = [
            self._embeds(prepared.input_ids, features.tensor, self._place(prepared, features))[0]
            for prepared, features in items
        ]
        longest = max(len(row) for row in rows)
        embeds = torch.stack([nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        mask = torch.stack([_left_mask(len(row), longest, self.device) for row in rows])
        return Prompt(inputs_embeds=embeds, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))

    def vision_modules(self) -> Mapping[str, nn.Module]:
        """Tower and projector; adaptor and pooling are the span ``pooling``."""
        network = self.model.model
        return {"tower": network.visual_tower.visual_tower, "projector": network.visual_projector}

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """Each runs once: the frames are one batch."""
        return dict.fromkeys(self.vision_modules(), 1)

    def _whole_call(self, prepared: Sequence[Prepared]) -> tuple[dict[str, Any], int]:
        """One prompt: the published ``generate(event_tensors=...)``. Several: Hugging Face's, padded on the left."""
        if len(prepared) == 1:
            return {"input_ids": prepared[0].input_ids, "event_tensors": list(prepared[0].pixel_values)}, 0
        arguments = self._native(prepared)
        return arguments, arguments["input_ids"].shape[1]

    def _place(self, prepared: Prepared, features: Features) -> int:
        """Where the features begin."""
        require_fit(features, self.expected_provenance())
        if prepared.media_tokens != features.tensor.shape[0]:
            raise FeaturesError(
                "features", found=f"{features.tensor.shape[0]} positions", expected=f"{prepared.media_tokens}"
            )
        return _on_host(prepared).index(EVENT_INDEX)

    @torch.no_grad()
    def _embeds(self, input_ids: torch.Tensor, features: torch.Tensor, at: int) -> torch.Tensor:
        """``[1, L, H]`` with the features in their place."""
        # All at once, the placeholder as any id: a look-up takes the host longer than the device.
        text = self.model.get_input_embeddings()(input_ids[0].clamp(min=0))
        return torch.cat([text[:at], features.to(self.device), text[at + 1 :]])[None]

    def _native(self, batch: Sequence[Prepared]) -> dict[str, Any]:
        """Hugging Face's arguments: ``<ev_patch>`` once per feature position, padded on the left."""
        rows = []
        for prepared in batch:
            ids = prepared.input_ids[0]
            at = _on_host(prepared).index(EVENT_INDEX)
            patches = ids.new_full((prepared.media_tokens,), self.model.config.placeholder_id)
            rows.append(torch.cat([ids[:at], patches, ids[at + 1 :]]))
        longest = max(len(row) for row in rows)
        return {
            "input_ids": torch.stack([nn.functional.pad(row, (longest - len(row), 0)) for row in rows]),
            "attention_mask": torch.stack([_left_mask(len(row), longest, self.device) for row in rows]),
            "pixel_values": torch.stack([prepared.pixel_values for prepared in batch]),
        }


def _on_host(prepared: Prepared) -> tuple[int, ...]:
    return prepared.token_ids or tuple(prepared.input_ids[0].tolist())


@functools.cache
def _keys(rows: int) -> tuple[int, ...]:
    """Of so many rows of features, as ``Prompt.token_keys`` has them."""
    return tuple(range(-1, -1 - rows, -1))


def _left_mask(length: int, longest: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(longest, device=device) >= longest - length).long()
