"""Stages 1 and 2 of any Hugging Face image-text or video-text model, without its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unfuse.adapters.base import Shown
from unfuse.adapters.media import evenly, load_frames, middle, shown_sha256
from unfuse.adapters.seam import PIXELS
from unfuse.features import Features
from unfuse.samples import Sample, clean_question
from unfuse.stages import Loaded, Prepared

VIDEO_FRAMES: Final = 8
"""Evenly spaced frames that a video model is shown."""

Frames = Sequence[NDArray[np.uint8]]
Tensors = dict[str, torch.Tensor]


class Prompter(Protocol):
    """A family's processor: frames and a question to the arguments of its forward."""

    def inputs(self, frames: Frames, question: str) -> Tensors:
        """On the CPU: ``input_ids [1, L]`` and whatever else the forward takes."""

    def further(self, frame_sizes: Sequence[tuple[int, int]], media_tokens: int, question: str) -> Tensors:
        """The same without pixels, for a question about frames encoded before."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens to text, without special ones."""


class HFFront:
    """Frames and questions through a family's own processor."""

    def __init__(
        self, prompter: Prompter, config: Any, dtype: torch.dtype, *, takes_video: bool, notes: tuple[str, ...] = ()
    ):
        """For a loader.

        Args:
            prompter: the family's processor.
            config: of the whole model.
            dtype: of the pixels that come out, the model's.
            takes_video: whether it is shown evenly spaced frames as a video, or the middle frame as an image.
            notes: of the processor.
        """
        self.family = str(config.model_type)
        self.notes = notes
        self._prompter = prompter
        self._dtype = dtype
        self._pick = evenly(VIDEO_FRAMES) if takes_video else middle
        self.media_ids = media_ids(config)

    def media_sha256(self, sample: Sample) -> str:
        """See ``Front.media_sha256``."""
        return shown_sha256(sample, self._pick)

    def load(self, sample: Sample) -> Loaded:
        """Evenly spaced frames of a video, or its middle frame; see ``load_frames``."""
        return load_frames(sample, self._pick)

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """What the family's processor makes of frames and question."""
        asked = loaded.question if question is None else clean_question(question)
        inputs = self._prompter.inputs(loaded.frames, asked)
        sizes = tuple((frame.shape[0], frame.shape[1]) for frame in loaded.frames)
        return self._prepared(inputs, loaded.media_sha256, asked, sizes)

    def tokenize(self, question: str, scene: Shown) -> Prepared:
        """The ids of a further question, and what goes along them."""
        asked = clean_question(question)
        inputs = self._prompter.further(scene.frame_sizes, scene.media_tokens, asked)
        text = {name: tensor for name, tensor in inputs.items() if name not in PIXELS}
        return self._prepared(text, scene.media_sha256, asked, scene.frame_sizes)

    def shown(self, features: Features) -> Shown:
        """See ``Front.shown``."""
        source, layout = features.provenance, features.layout
        return Shown(
            media_sha256=source.media_sha256,
            num_frames=source.num_frames,
            media_tokens=int(layout.get("media_tokens", 0)),
            frame_sizes=tuple((int(h), int(w)) for h, w in layout.get("frame_sizes", ())),
        )

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """See ``Front.decode_text``."""
        return self._prompter.decode(token_ids).strip()

    def _prepared(
        self, inputs: Mapping[str, torch.Tensor], media_sha256: str, question: str, sizes: tuple[tuple[int, int], ...]
    ) -> Prepared:
        # A mask that hides nothing is left out: with it, some networks take a slower way.
        kept = {name: self._cast(t) for name, t in inputs.items() if name != "attention_mask" or not bool(t.all())}
        ids = kept.pop("input_ids")
        on_host = tuple(ids[0].tolist())
        media = sum(1 for i in on_host if i in self.media_ids)
        pixels = next((kept[name] for name in reversed(PIXELS) if name in kept), None)
        return Prepared(
            input_ids=ids,
            pixel_values=torch.empty(0, dtype=self._dtype) if pixels is None else pixels,
            media_sha256=media_sha256,
            question=question,
            num_frames=len(sizes),
            text_tokens=len(on_host) - media,
            media_tokens=media,
            inputs=kept,
            frame_sizes=sizes,
            token_ids=on_host,
        )

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def media_ids(config: Any) -> frozenset[int]:
    """Placeholders of images and videos in a prompt."""
    ids = [getattr(config, name, None) for name in ("image_token_id", "video_token_id", "image_token_index")]
    return frozenset(int(i) for i in ids if i is not None)
