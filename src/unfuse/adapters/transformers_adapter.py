"""Base class of adapters for transformers models."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from unfuse.adapters.base import FusedOutput, Preprocessor
from unfuse.adapters.expected_work import ExpectedWork, text_work
from unfuse.adapters.fused_generate import FusedSettings, generate_fused
from unfuse.engines.language_model import LanguageModel, end_ids
from unfuse.features import Features
from unfuse.measure.products import Products
from unfuse.samples import Sample
from unfuse.stages import Loaded, Prepared, Prompt, Provenance, Sampling


class TransformersAdapter(ABC):
    """Implements the parts of ``Adapter`` that do not depend on the family."""

    family: str
    model: Any
    preprocessor: Preprocessor
    fingerprint: str

    @property
    @abstractmethod
    def language(self) -> LanguageModel:
        """See ``Adapter.language``."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return end_ids(self.model)

    def load(self, sample: Sample) -> Loaded:
        """See ``Adapter.load``."""
        return self.preprocessor.load(sample)

    def media_sha256(self, sample: Sample) -> str:
        """See ``Adapter.media_sha256``."""
        return self.preprocessor.media_sha256(sample)

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """See ``Adapter.preprocess``."""
        return self.upload(self.preprocessor.preprocess(loaded, question))

    def tokenize(self, question: str, features: Features) -> Prepared:
        """See ``Adapter.tokenize``."""
        return self.rebuild_inputs(
            self.preprocessor.tokenize(question, self.preprocessor.scene_info(features)), features
        )

    def decode_text(self, token_ids: tuple[int, ...]) -> str:
        """See ``Adapter.decode_text``."""
        return self.preprocessor.decode_text(token_ids)

    @abstractmethod
    def upload(self, prepared: Prepared) -> Prepared:
        """See ``Adapter.upload``."""

    @abstractmethod
    def rebuild_inputs(self, prepared: Prepared, features: Features) -> Prepared:
        """See ``Adapter.rebuild_inputs``."""

    @abstractmethod
    def encode(self, prepared: Prepared) -> Features:
        """See ``Adapter.encode``."""

    @abstractmethod
    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """See ``Adapter.encode_batch``."""

    def fused_generate(
        self,
        prepared: Sequence[Prepared],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        logits: bool = False,
        forced: Sequence[int] | None = None,
    ) -> list[FusedOutput]:
        """See ``Adapter.fused_generate``."""
        arguments, prompt_length = self._fused_arguments(prepared)
        settings = FusedSettings(max_new_tokens=max_new_tokens, sampling=sampling, logits=logits, forced=forced)
        return generate_fused(self.model, arguments, prompt_length, settings)

    def expected_provenance(self) -> Provenance:
        """See ``Adapter.expected_provenance``."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Provenance(
            model_fingerprint=self.fingerprint,
            family=self.family,
            media_sha256="",
            num_frames=0,
            dtype=dtype,
            shape=(self._width,),
        )

    def feature_positions(self, prepared: Prepared) -> slice | None:
        """See ``Adapter.feature_positions``."""
        return None

    def expected_work(self, prepared: Prepared, prompt: Prompt, rows: int) -> ExpectedWork:
        """See ``Adapter.expected_work``."""
        prefill, step, text_source = text_work(self.model, self.language, prompt, rows)
        encode, source = self._encode_work(prepared)
        if source != text_source:
            source = f"encode: {source}; text: {text_source}"
        return ExpectedWork(encode=encode, prefill=prefill, step=step, source=source)

    @abstractmethod
    def _encode_work(self, prepared: Prepared) -> tuple[Products, str]:
        """Return the operations of ``encode``, and where the number comes from."""

    @functools.cached_property
    def _width(self) -> int:
        # Cached, since every question reads it before its first token, and finding the embeddings takes time.
        return int(self.model.get_input_embeddings().weight.shape[-1])

    @abstractmethod
    def _fused_arguments(self, prepared: Sequence[Prepared]) -> tuple[dict[str, Any], int]:
        """Return the arguments of ``generate``, and the number of prompt ids at the start of its output."""

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy to the device, floats in the model's dtype. A copy from pinned memory is asynchronous."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None, non_blocking=True)

    def _features(self, tensor: torch.Tensor, prepared: Prepared, **more: Any) -> Features:
        """Return features of this model with their provenance."""
        provenance = Provenance(
            model_fingerprint=self.fingerprint,
            family=self.family,
            media_sha256=prepared.media_sha256,
            num_frames=prepared.num_frames,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
        )
        return Features(tensor, provenance, **more)
