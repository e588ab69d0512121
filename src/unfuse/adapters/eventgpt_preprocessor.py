"""Preprocessor of EventGPT: stages 1 and 2, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from unfuse.adapters.base import SceneInfo
from unfuse.adapters.chat_prompt import ControlTokens
from unfuse.adapters.media import event_frames_sha256, load_event_frames
from unfuse.adapters.pixels import ClipPixels
from unfuse.errors import MediaError, PromptError
from unfuse.features import Features
from unfuse.measure.clock import span
from unfuse.models.eventgpt.configuration_eventgpt import EventChatConfig
from unfuse.models.eventgpt.prompt import build_prompt, tokenize_prompt
from unfuse.samples import Sample, clean_question
from unfuse.stages import Loaded, Prepared


class EventGPTPreprocessor:
    """Converts event frames to CLIP's pixels, and questions to ids with ``-200`` for the scene."""

    family = "eventgpt"

    def __init__(self, config: EventChatConfig, tokenizer: Any, event_processor: Any, dtype: torch.dtype):
        """Create the preprocessor.

        Args:
            config: with ``vision_config``.
            tokenizer: the checkpoint's, with the event tokens.
            event_processor: its image processor.
            dtype: dtype of the pixels: the model's.
        """
        self.tokenizer = tokenizer
        self.event_processor = event_processor
        self._pixels = ClipPixels(event_processor)
        self.notes = self._pixels.notes
        self._dtype = dtype
        self._num_patches = config.num_patches
        self._max_positions = config.tokenizer_model_max_length
        self._control = ControlTokens(tokenizer)

    def media_sha256(self, sample: Sample) -> str:
        """See ``Preprocessor.media_sha256``."""
        return event_frames_sha256(_with_events(sample))

    def load(self, sample: Sample) -> Loaded:
        """Load ``event_image`` if the sample has it, else rasterise ``event_data``."""
        return load_event_frames(_with_events(sample))

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Compute the CLIP pixels of every frame, and the ids of the prompt."""
        question = loaded.question if question is None else clean_question(question)
        with span("pixels"):
            pixels = torch.from_numpy(self._pixels(loaded.frames)).to(self._dtype)
        sizes = tuple((frame.shape[0], frame.shape[1]) for frame in loaded.frames)
        scene = SceneInfo(
            media_sha256=loaded.media_sha256,
            num_frames=len(sizes),
            media_tokens=len(sizes) + self._num_patches,
            frame_sizes=sizes,
        )
        return replace(self.prepared(self._ids(question), scene, question), pixel_values=pixels)

    def tokenize(self, question: str, scene: SceneInfo) -> Prepared:
        """Compute the ids of a further question, without pixels."""
        question = clean_question(question)
        return self.prepared(self._ids(question), scene, question)

    def scene_info(self, features: Features) -> SceneInfo:
        """See ``Preprocessor.scene_info``."""
        source = features.provenance
        return SceneInfo(
            media_sha256=source.media_sha256,
            num_frames=source.num_frames,
            media_tokens=source.num_frames + self._num_patches,
        )

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """See ``Preprocessor.decode_text``."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def prepared(self, ids: tuple[int, ...], scene: SceneInfo, question: str) -> Prepared:
        """Return a prompt without pixels.

        Raises:
            PromptError: the prompt is too long for the model.
        """
        text_tokens = len(ids) - 1
        if text_tokens + scene.media_tokens > self._max_positions:
            raise PromptError(
                f"question {question[:60]!r}...",
                found=f"a prompt of {text_tokens + scene.media_tokens} positions",
                expected=f"at most {self._max_positions}",
                fix="ask a shorter question",
            )
        return Prepared(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.empty(0, 3, 0, 0, dtype=self._dtype),
            media_sha256=scene.media_sha256,
            question=question,
            num_frames=scene.num_frames,
            text_tokens=text_tokens,
            media_tokens=scene.media_tokens,
            frame_sizes=scene.frame_sizes,
            token_ids=ids,
        )

    def _ids(self, question: str) -> tuple[int, ...]:
        with span("tokenize"):
            self._control.refuse(question)
            return tuple(tokenize_prompt(build_prompt(question), self.tokenizer))


def _with_events(sample: Sample) -> Sample:
    if not sample.has_events:
        raise MediaError(f"sample {sample.sample_id}", found="no events", expected="event_image or event_data")
    return sample
