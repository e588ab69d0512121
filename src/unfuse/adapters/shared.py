"""What every adapter over a Hugging Face network does the same way."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from unfuse.adapters.base import Front, Fused
from unfuse.adapters.fused import generate_fused
from unfuse.engines.language_model import end_ids
from unfuse.features import Features
from unfuse.samples import Sample
from unfuse.stages import Loaded, Prepared, Provenance, Sampling


class HuggingFaceAdapter(ABC):
    """Where a network is, what its features must say, and its own ``generate``."""

    family: str
    model: Any
    front: Front
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return end_ids(self.model)

    def load(self, sample: Sample) -> Loaded:
        """Stage 1."""
        return self.front.load(sample)

    def media_sha256(self, sample: Sample) -> str:
        """Of what ``load`` takes; nothing is decoded."""
        return self.front.media_sha256(sample)

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Stage 2."""
        return self.upload(self.front.preprocess(loaded, question))

    def tokenize(self, question: str, features: Features) -> Prepared:
        """Stage 2 for a further question."""
        return self.recall(self.front.tokenize(question, self.front.shown(features)), features)

    def decode_text(self, token_ids: tuple[int, ...]) -> str:
        """Tokens to text."""
        return self.front.decode_text(token_ids)

    @abstractmethod
    def upload(self, prepared: Prepared) -> Prepared:
        """The end of stage 2."""

    @abstractmethod
    def recall(self, prepared: Prepared, features: Features) -> Prepared:
        """The same for a further question."""

    @abstractmethod
    def encode(self, prepared: Prepared) -> Features:
        """Stage 3."""

    @abstractmethod
    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Stage 3 of several."""

    def fused_generate(
        self, prepared: Sequence[Prepared], *, max_new_tokens: int, sampling: Sampling, logits: bool = False
    ) -> list[Fused]:
        """The model's own ``generate`` from pixels."""
        arguments, prompt_length = self._whole_call(prepared)
        return generate_fused(
            self.model, arguments, prompt_length, max_new_tokens=max_new_tokens, sampling=sampling, logits=logits
        )

    def expected_provenance(self) -> Provenance:
        """This model's side of the comparison."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Provenance(
            model_fingerprint=self.fingerprint,
            family=self.family,
            media_sha256="",
            num_frames=0,
            dtype=dtype,
            shape=(self._width,),
        )

    @functools.cached_property
    def _width(self) -> int:
        # Asked for before every question's first token, and a model has to be searched for its embeddings.
        return int(self.model.get_input_embeddings().weight.shape[-1])

    @abstractmethod
    def _whole_call(self, prepared: Sequence[Prepared]) -> tuple[dict[str, Any], int]:
        """Arguments of ``generate``, and how many ids at the start of what it returns are the prompt."""

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device, floating values in the model's dtype. Only memory that is pinned is copied without waiting."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, non_blocking=True)

    def _features(self, tensor: torch.Tensor, prepared: Prepared, **more: Any) -> Features:
        """Features of this model with their provenance."""
        provenance = Provenance(
            model_fingerprint=self.fingerprint,
            family=self.family,
            media_sha256=prepared.media_sha256,
            num_frames=prepared.num_frames,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
        )
        return Features(tensor, provenance, **more)
