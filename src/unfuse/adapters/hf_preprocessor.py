"""Preprocessor of any Hugging Face image-text or video-text model: stages 1 and 2, without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unfuse.adapters.base import SceneInfo
from unfuse.adapters.media import evenly, load_frames, middle, selected_frames_sha256
from unfuse.adapters.split_point import PIXELS
from unfuse.features import Features
from unfuse.samples import Sample, clean_question
from unfuse.stages import Loaded, Prepared

VIDEO_FRAMES: Final = 8
"""Evenly spaced frames that a video model gets."""

Frames = Sequence[NDArray[np.uint8]]
Tensors = dict[str, torch.Tensor]


class Processor(Protocol):
    """A family's processor: converts frames and a question to the arguments of the model's forward."""

    image_processor: Any
    """Its settings determine the pixels, and are a part of the model's fingerprint."""

    def inputs(self, frames: Frames, question: str) -> Tensors:
        """Return ``input_ids [1, L]`` and the other arguments of the forward, on the CPU."""

    def text_inputs(self, frame_sizes: Sequence[tuple[int, int]], media_tokens: int, question: str) -> Tensors:
        """Return the arguments without pixels, for a question about frames that are encoded already."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""


class HFPreprocessor:
    """Runs a family's processor on frames and questions."""

    def __init__(
        self, processor: Processor, config: Any, dtype: torch.dtype, *, takes_video: bool, notes: tuple[str, ...] = ()
    ):
        """Create the preprocessor.

        Args:
            processor: the family's processor.
            config: config of the model.
            dtype: dtype of the pixels: the model's.
            takes_video: whether the model gets evenly spaced frames as a video, or the middle frame as an image.
            notes: the processor's notes for reports.
        """
        self.family = str(config.model_type)
        self.notes = notes
        self._processor = processor
        self._dtype = dtype
        self._pick = evenly(VIDEO_FRAMES) if takes_video else middle
        self.media_ids = media_ids(config)

    def media_sha256(self, sample: Sample) -> str:
        """See ``Preprocessor.media_sha256``."""
        return selected_frames_sha256(sample, self._pick)

    def load(self, sample: Sample) -> Loaded:
        """Load evenly spaced frames of a video, or its middle frame; see ``load_frames``."""
        return load_frames(sample, self._pick)

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """See ``Preprocessor.preprocess``."""
        question = loaded.question if question is None else clean_question(question)
        inputs = self._processor.inputs(loaded.frames, question)
        sizes = tuple((frame.shape[0], frame.shape[1]) for frame in loaded.frames)
        return self._prepared(inputs, loaded.media_sha256, question, sizes)

    def tokenize(self, question: str, scene: SceneInfo) -> Prepared:
        """Return the inputs of a question about an encoded scene, without its pixels."""
        question = clean_question(question)
        inputs = self._processor.text_inputs(scene.frame_sizes, scene.media_tokens, question)
        text = {name: tensor for name, tensor in inputs.items() if name not in PIXELS}
        return self._prepared(text, scene.media_sha256, question, scene.frame_sizes)

    def scene_info(self, features: Features) -> SceneInfo:
        """See ``Preprocessor.scene_info``."""
        source, layout = features.provenance, features.layout
        return SceneInfo(
            media_sha256=source.media_sha256,
            num_frames=source.num_frames,
            media_tokens=int(layout.get("media_tokens", 0)),
            frame_sizes=tuple((int(h), int(w)) for h, w in layout.get("frame_sizes", ())),
        )

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """See ``Preprocessor.decode_text``."""
        return self._processor.decode(token_ids).strip()

    def _prepared(
        self, inputs: Mapping[str, torch.Tensor], media_sha256: str, question: str, sizes: tuple[tuple[int, int], ...]
    ) -> Prepared:
        # A mask of ones is left out: with a mask, some models use slower attention.
        tensors = {name: self._cast(t) for name, t in inputs.items() if name != "attention_mask" or not bool(t.all())}
        ids = tensors.pop("input_ids")
        token_ids = tuple(ids[0].tolist())
        media = sum(1 for i in token_ids if i in self.media_ids)
        pixels = next((tensors[name] for name in reversed(PIXELS) if name in tensors), None)
        return Prepared(
            input_ids=ids,
            pixel_values=torch.empty(0, dtype=self._dtype) if pixels is None else pixels,
            media_sha256=media_sha256,
            question=question,
            num_frames=len(sizes),
            text_tokens=len(token_ids) - media,
            media_tokens=media,
            inputs=tensors,
            frame_sizes=sizes,
            token_ids=token_ids,
        )

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def media_ids(config: Any) -> frozenset[int]:
    """Return the ids of the placeholders of images and videos."""
    ids = [getattr(config, name, None) for name in ("image_token_id", "video_token_id", "image_token_index")]
    return frozenset(int(i) for i in ids if i is not None)
