"""Processors of Hugging Face families: a checkpoint's own, and one for CLIP pixels that needs no torchvision.

LLaVA-1.5 and Video-LLaVA take CLIP's pixels. ``ClipProcessor`` computes them as the checkpoints' processors do, so
neither torchvision nor a video library is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unfuse.adapters.pixels import ClipPixels
from unfuse.errors import PromptError
from unfuse.measure.clock import span

Frames = Sequence[NDArray[np.uint8]]
Tensors = dict[str, torch.Tensor]

_PLAIN_CHAT: Final = "USER: {media}{question} ASSISTANT:"
"""Vicuna's prompt, with which LLaVA-1.5 and Video-LLaVA were trained; for checkpoints without a chat template."""


class ClipProcessor:
    """Computes CLIP pixels; repeats the placeholder once per feature position and tokenises the prompt."""

    def __init__(
        self, tokenizer: Any, image_processor: Any, *, media_token: str, patches: int, video: bool, template: str | None
    ):
        """Create the processor.

        Args:
            tokenizer: with ``media_token`` as one token.
            image_processor: a ``CLIPImageProcessorPil``.
            media_token: ``<image>`` or ``<video>``.
            patches: feature positions per frame.
            video: use one placeholder for all frames and pixels ``[1, F, 3, H, W]``; else one per frame and
                ``[F, 3, H, W]``.
            template: the checkpoint's chat template.
        """
        self.image_processor = image_processor
        self.video = video
        self._tokenizer = tokenizer
        self._pixels = ClipPixels(image_processor)
        self.notes = self._pixels.notes
        self._token = media_token
        self._patches = patches
        self._template = template

    def inputs(self, frames: Frames, question: str) -> Tensors:
        """Return ``input_ids`` and ``pixel_values`` or ``pixel_values_videos``."""
        tensors = self.text_inputs([(0, 0)] * len(frames), len(frames) * self._patches, question)
        if frames:
            with span("pixels"):
                pixels = torch.from_numpy(self._pixels(frames))
            tensors |= {"pixel_values_videos": pixels.unsqueeze(0)} if self.video else {"pixel_values": pixels}
        return tensors

    def text_inputs(self, frame_sizes: Sequence[tuple[int, int]], media_tokens: int, question: str) -> Tensors:
        """Return ``input_ids``: the number of positions is known without pixels."""
        items = min(len(frame_sizes), 1) if self.video else len(frame_sizes)
        with span("tokenize"):
            text = self._chat(items, question)
            if text.count(self._token) != items:
                raise PromptError("prompt", found=f"{text.count(self._token)} {self._token}", expected=str(items))
            if items:
                text = text.replace(self._token, self._token * (media_tokens // items))
            return {"input_ids": torch.tensor([self._tokenizer(text).input_ids])}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _chat(self, items: int, question: str) -> str:
        if self._template is None:
            return _PLAIN_CHAT.format(media=f"{self._token}\n" * items, question=question)
        return str(
            self._tokenizer.apply_chat_template(
                _messages(["video" if self.video else "image"] * items, question),
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        )


class CheckpointProcessor:
    """Runs the checkpoint's own processor and chat template."""

    def __init__(self, processor: Any, *, video: bool):
        """Create the processor.

        Args:
            processor: from ``AutoProcessor``.
            video: pass the frames as one video; else as images.
        """
        self.image_processor = processor
        """The whole processor: its settings determine the pixels."""
        self._processor = processor
        self._video = video

    def inputs(self, frames: Frames, question: str) -> Tensors:
        """Return all tensors of the processor."""
        with span("process"):
            return self._call(frames, question)

    def text_inputs(self, frame_sizes: Sequence[tuple[int, int]], media_tokens: int, question: str) -> Tensors:
        """Process blank frames of equal sizes, since only the processor knows its placeholders."""
        blanks = [np.zeros((height, width, 3), np.uint8) for height, width in frame_sizes]
        with span("process"):
            return self._call(blanks, question)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self._processor.decode(list(token_ids), skip_special_tokens=True))

    def _call(self, frames: Frames, question: str) -> Tensors:
        media: dict[str, Any] = {}
        if frames and self._video:
            media = {"videos": [np.stack(list(frames))]}
        elif frames:
            media = {"images": [Image.fromarray(frame) for frame in frames]}
        outputs = self._processor(text=[self._text(len(frames), question)], return_tensors="pt", **media)
        return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}

    def _text(self, frames: int, question: str) -> str:
        kinds = ["video"] * min(frames, 1) if self._video else ["image"] * frames
        if getattr(self._processor, "chat_template", None):
            messages = _messages(kinds, question)
            return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        # Without a template the processor inserts the placeholders (PaliGemma), or has an attribute with the token.
        token = getattr(self._processor, f"{kinds[0]}_token", "") if kinds else ""
        return f"{token * len(kinds)}{question}"


def _messages(kinds: Sequence[str], question: str) -> list[dict[str, Any]]:
    content = [{"type": kind} for kind in kinds]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
