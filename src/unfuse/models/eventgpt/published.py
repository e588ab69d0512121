"""The calls of the published ``EventChatModel``; here they use given features.

``visval_encode`` encodes once, and ``generate(event_features=...)`` does not run the tower. A call raises an error if
the published code silently computes a wrong result for it.

``event_image_sizes`` has no effect, as in the published code; it is accepted so that existing calls run.

Shape letters: B prompts, F frames, P patches + 1, H hidden width, N = F + P, L ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unfuse.errors import FeaturesError, PromptError
from unfuse.features import Features, require_fit
from unfuse.models.eventgpt.modeling_eventgpt import EventGPTForConditionalGeneration, VisualTower
from unfuse.models.eventgpt.processing_eventgpt import load_event_processor
from unfuse.models.eventgpt.prompt import EVENT_INDEX
from unfuse.models.fingerprint import model_fingerprint, with_pixels
from unfuse.stages import Provenance

IGNORE_INDEX = -100

SixTuple = tuple[
    torch.Tensor | None,
    torch.Tensor | None,
    torch.Tensor | None,
    Any,
    torch.Tensor | None,
    torch.Tensor | None,
]


class PublishedTower:
    """Result of ``get_visual_tower()``: the tower with its ``event_processor``."""

    def __init__(self, tower: VisualTower, event_processor: Any):
        self._tower = tower
        self.event_processor = event_processor

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map ``[F, 3, H, W]`` to ``[F, P, C]``."""
        return self._tower(pixels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)


class EventChatModel(EventGPTForConditionalGeneration):
    """EventGPT with the published calls; Hugging Face's calls work as well."""

    def get_visual_tower(self) -> PublishedTower:
        """Return the tower and its image processor."""
        return PublishedTower(self.model.visual_tower, load_event_processor(self.config.name_or_path, self.config))

    def visval_encode(self, event_tensors: torch.Tensor) -> torch.Tensor:
        """Run tower and projector on all frames in one batch.

        Args:
            event_tensors: ``[F, 3, H, W]``.

        Returns:
            ``[F, P, H]``.
        """
        if event_tensors.dim() != 4:
            raise FeaturesError("visval_encode", found=list(event_tensors.shape), expected="pixels [F, 3, H, W]")
        pixels = event_tensors.to(self.device, self.dtype)
        return self.model.visual_projector(self.model.visual_tower(pixels))

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        labels: torch.Tensor | None,
        event_tensors: Sequence[Any] | None,
        event_image_sizes: Any = None,
        event_features: torch.Tensor | Features | None = None,
    ) -> SixTuple:
        """Replace ``-200`` by the features of the scene.

        Args:
            input_ids: ``[B, L]`` with one ``-200`` per prompt.
            position_ids: if None, None is returned.
            attention_mask: ``[B, L]``; padding is removed before features are inserted.
            past_key_values: passed through.
            labels: ``[B, L]``; feature positions get -100.
            event_tensors: frames ``[3, H, W]`` of the prompt (for a batch: one list per prompt).
            event_image_sizes: has no effect.
            event_features: ``visval_encode`` output ``[F, P, H]`` (a batch: ``[B, F, P, H]``), or a ``Features``.
                With features the tower does not run.

        Returns:
            ``(None, position_ids, attention_mask, past_key_values, inputs_embeds, labels)``.

        Raises:
            FeaturesError: the features do not fit, or not exactly one of pixels and features is given.
            PromptError: a prompt has no or several placeholders, or is too long.
        """
        scenes = self._features_of(event_tensors, event_features, batch=input_ids.shape[0])
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        all_labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        rows = [
            self._row(ids[keep], row[keep], scene)
            for ids, row, keep, scene in zip(input_ids, all_labels, mask, scenes, strict=True)
        ]
        longest = max(embeds.shape[0] for embeds, _ in rows)
        left = self.config.tokenizer_padding_side == "left"
        embeds_out = rows[0][0].new_zeros(len(rows), longest, rows[0][0].shape[-1])
        labels_out = all_labels.new_full((len(rows), longest), IGNORE_INDEX)
        mask_out = torch.zeros(len(rows), longest, dtype=torch.long, device=input_ids.device)
        for i, (embeds, row_labels) in enumerate(rows):
            columns = slice(longest - len(embeds), longest) if left else slice(0, len(embeds))
            embeds_out[i, columns], labels_out[i, columns], mask_out[i, columns] = embeds, row_labels, 1
        positions = (mask_out.cumsum(-1) - 1).clamp(min=0)
        return (
            None,
            None if position_ids is None else positions,
            None if attention_mask is None else mask_out.to(attention_mask.dtype),
            past_key_values,
            embeds_out,
            None if labels is None else labels_out,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        event_tensors: Sequence[Any] | None = None,
        event_image_sizes: Any = None,
        event_features: torch.Tensor | Features | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the published ``generate``; it returns new ids only.

        With ``pixel_values`` or ``inputs_embeds`` it is Hugging Face's ``generate`` and returns prompt and new ids.

        Args:
            input_ids: ``[B, L]`` with one ``-200`` per prompt.
            event_tensors: frames of the prompt.
            event_image_sizes: has no effect.
            event_features: as in ``prepare_inputs_labels_for_multimodal``, instead of frames.
            **kwargs: arguments of Hugging Face's ``generate``.
        """
        native = kwargs.get("pixel_values") is not None or kwargs.get("inputs_embeds") is not None
        if native and event_tensors is None and event_features is None:
            return super().generate(input_ids, **kwargs)
        if input_ids is None:
            raise PromptError("generate", found="no input_ids", expected=f"ids with one {EVENT_INDEX}")
        _, position_ids, attention_mask, _, inputs_embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids,
            kwargs.pop("position_ids", None),
            kwargs.pop("attention_mask", torch.ones_like(input_ids)),
            None,
            None,
            event_tensors,
            event_image_sizes,
            event_features,
        )
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return super().generate(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _features_of(
        self,
        event_tensors: Sequence[Any] | None,
        event_features: torch.Tensor | Features | None,
        *,
        batch: int,
    ) -> list[torch.Tensor]:
        """Return the features ``[N, H]`` of each prompt."""
        if (event_tensors is None) == (event_features is None):
            raise FeaturesError(
                "generate",
                found="neither event_tensors nor event_features" if event_tensors is None else "both",
                expected="one of event_tensors and event_features",
            )
        if isinstance(event_features, Features):
            expected = Provenance(
                model_fingerprint=with_pixels(model_fingerprint(self), self.get_visual_tower().event_processor),
                family="eventgpt",
                media_sha256="",
                num_frames=0,
                dtype=str(self.dtype).removeprefix("torch."),
                shape=(self.config.hidden_size,),
            )
            require_fit(event_features, expected)
            scenes = [event_features.tensor.to(self.device)]
        elif event_features is not None:
            scenes = list(self.model.finish_features(self._checked(event_features)))
        else:
            scenes = [self._encode(frames) for frames in _scenes(event_tensors)]
        if len(scenes) != batch:
            raise FeaturesError("generate", found=f"{len(scenes)} scenes", expected=f"{batch}, one per prompt")
        return scenes

    def _checked(self, features: torch.Tensor) -> torch.Tensor:
        """Check sizes and dtype of features; return them as ``[B, F, P, H]``."""
        tail = (self.num_patches, self.config.hidden_size)
        if features.dim() not in (3, 4) or tuple(features.shape[-2:]) != tail:
            raise FeaturesError(
                "event_features",
                found=list(features.shape),
                expected=f"[frames, {tail[0]}, {tail[1]}] as visval_encode gives it (patches + 1, hidden width)",
            )
        if features.dtype != self.dtype:
            raise FeaturesError("event_features", found=features.dtype, expected=f"{self.dtype}, this model's")
        return (features if features.dim() == 4 else features.unsqueeze(0)).to(self.device)

    def _encode(self, frames: Sequence[torch.Tensor]) -> torch.Tensor:
        pixels = torch.stack([frame.squeeze(0) if frame.dim() == 4 else frame for frame in frames])
        return self.model.finish_features(self.visval_encode(pixels))

    def _row(self, ids: torch.Tensor, labels: torch.Tensor, scene: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = (ids == EVENT_INDEX).nonzero().flatten().tolist()
        if len(positions) != 1:
            raise PromptError(
                "input_ids", found=f"{len(positions)} placeholders {EVENT_INDEX}", expected="one per prompt"
            )
        at = positions[0]
        embed = self.get_input_embeddings()
        embeds = torch.cat([embed(ids[:at]), scene, embed(ids[at + 1 :])])
        limit = self.config.tokenizer_model_max_length
        if len(embeds) > limit:
            raise PromptError(
                "prompt",
                found=f"{len(embeds)} positions",
                expected=f"at most {limit}",
                fix="ask a shorter question: the published code would cut its end off silently",
            )
        gap = labels.new_full((len(scene),), IGNORE_INDEX)
        return embeds, torch.cat([labels[:at], gap, labels[at + 1 :]])


def _scenes(event_tensors: Any) -> list[Sequence[torch.Tensor]]:
    if isinstance(event_tensors, torch.Tensor):
        raise FeaturesError(
            "event_tensors",
            found=f"a bare tensor {list(event_tensors.shape)}",
            expected="a list of frames [3, H, W]",
            fix="pass list(tensor): the published code skips adaptor and pooling for a bare tensor, silently",
        )
    if len(event_tensors) == 0:
        raise FeaturesError("event_tensors", found="an empty list", expected="a list of frames [3, H, W]")
    nested = isinstance(event_tensors[0], (list, tuple))
    return list(event_tensors) if nested else [event_tensors]
