"""Processors of Hugging Face families: a checkpoint's own, and one for CLIP pixels that needs no torchvision.

LLaVA-1.5 and Video-LLaVA take CLIP's pixels. ``ClipProcessor`` computes them as the checkpoints' processors do, so
neither torchvision nor a video library is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unfuse.adapters.chat_prompt import ChatPrompt, ControlTokens, Messages, default_template
from unfuse.adapters.pixels import ClipPixels, require_aspect
from unfuse.errors import CheckpointError, PromptError
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
        self._chat = None if template is None else ChatPrompt(self._render, tokenizer, "video" if video else "image")
        self._control = ControlTokens(tokenizer, template=template)

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
            self._control.refuse(question)
            text = self._prompt(items, question)
            if text.count(self._token) != items:
                raise PromptError("prompt", found=f"{text.count(self._token)} {self._token}", expected=str(items))
            if items:
                text = text.replace(self._token, self._token * (media_tokens // items))
            special = self._chat is None or self._chat.adds_special_tokens(text)
            return {"input_ids": torch.tensor([self._tokenizer(text, add_special_tokens=special).input_ids])}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _prompt(self, items: int, question: str) -> str:
        if self._chat is None:
            return _PLAIN_CHAT.format(media=f"{self._token}\n" * items, question=question)
        return self._chat.text(["video" if self.video else "image"] * items, question)

    def _render(self, messages: Messages) -> Any:
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
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
        tokenizer = getattr(processor, "tokenizer", processor)
        self._chat = self._chat_prompt(tokenizer)
        self._control = ControlTokens(tokenizer, template=self._template, processor=processor)

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
        require_aspect(frames)
        if frames and self._video:
            media = {"videos": [np.stack(list(frames))]}
        elif frames:
            media = {"images": [Image.fromarray(frame) for frame in frames]}
        self._control.refuse(question)
        text, options = self._text(len(frames), question)
        outputs = self._processor(text=[text], return_tensors="pt", **media, **options)
        return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}

    def _text(self, frames: int, question: str) -> tuple[str, dict[str, Any]]:
        """Return the prompt, and options for the tokenizer."""
        kinds = ["video"] * min(frames, 1) if self._video else ["image"] * frames
        if self._chat is not None:
            text = self._chat.text(kinds, question)
            return text, {} if self._chat.adds_special_tokens(text) else {"add_special_tokens": False}
        # Without a template the processor inserts the placeholders (PaliGemma), or has an attribute with the token.
        token = getattr(self._processor, f"{kinds[0]}_token", "") if kinds else ""
        return f"{token * len(kinds)}{question}", {}

    def _chat_prompt(self, tokenizer: Any) -> ChatPrompt | None:
        """Return the prompts of the processor's template, else of the tokenizer's if this template shows media."""
        kind = "video" if self._video else "image"
        where = str(getattr(tokenizer, "name_or_path", "") or "the checkpoint")
        self._template = default_template(getattr(self._processor, "chat_template", None), where)
        if self._template:
            return ChatPrompt(self._render, tokenizer, kind)
        with suppress(CheckpointError):  # a template for text alone
            self._template = default_template(getattr(tokenizer, "chat_template", None), where)
            placeholder = getattr(self._processor, f"{kind}_token", None)
            if (
                self._template
                and placeholder
                and placeholder in (chat := ChatPrompt(self._render, tokenizer, kind)).trial
            ):
                return chat
        self._template = None
        return None

    def _render(self, messages: Messages) -> Any:
        return self._processor.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
