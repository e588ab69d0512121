"""EventGPT, cut: tower, projector, adaptor and pooling in ``encode``; the LLaMA alone in Stage 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from unfuse.adapters.base import Fused
from unfuse.engines.attention import reproducible_attention
from unfuse.errors import FeaturesError, MediaError, PromptError
from unfuse.events import event_frames, read_events
from unfuse.features import Features, require_fit
from unfuse.measure.clock import span
from unfuse.models.eventgpt import EventChatModel
from unfuse.models.eventgpt.prompt import EVENT_INDEX, build_prompt, tokenize_prompt
from unfuse.samples import Sample, clean_question
from unfuse.samples.media import read_image
from unfuse.samples.sample import frames_sha256, media_sha256
from unfuse.stages import Loaded, Prepared, Prompt, Provenance

NUM_FRAMES = 5
"""Runs of equal event count that a recording is cut into (published inference code)."""
_PUBLISHED_LIMIT_US = 100_000


class EventGPTAdapter:
    """One loaded EventGPT."""

    family = "eventgpt"

    def __init__(
        self,
        model: EventChatModel,
        tokenizer: Any,
        event_processor: Any,
        fingerprint: str,
        notes: tuple[str, ...] = (),
    ):
        self.model = model
        self.fingerprint = fingerprint
        self.notes = notes
        self._tokenizer = tokenizer
        self._event_processor = event_processor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.model.dtype

    def load(self, sample: Sample) -> Loaded:
        """Takes ``event_image`` if the sample has it, else ``event_data``, which is rasterised here."""
        question = clean_question(sample.question)
        if sample.frames:
            sha256 = frames_sha256(sample.frames)
            return Loaded(frames=list(sample.frames), media="frames", media_sha256=sha256, question=question)
        if sample.event_image:
            frames = [read_image(path) for path in sample.event_image]
            sha256 = media_sha256(sample.event_image, "image files")
            return Loaded(frames=frames, media="event_image", media_sha256=sha256, question=question)
        if sample.event_data is None:
            raise MediaError(f"sample {sample.sample_id}", found="no events", expected="event_image or event_data")
        with span("read"):
            stream = read_events(sample.event_data, window=sample.window)
        with span("rasterise"):
            frames = list(event_frames(stream, NUM_FRAMES))
        notes: tuple[str, ...] = ()
        if stream.duration_us >= _PUBLISHED_LIMIT_US:
            notes = (f"{stream.duration_us / 1e3:.0f} ms of events; the published code refuses 100 ms and more",)
        return Loaded(
            frames=frames,
            media="event_data",
            media_sha256=media_sha256((sample.event_data,), f"{NUM_FRAMES} equal-count frames", sample.window),
            question=question,
            num_events=len(stream),
            notes=notes,
        )

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """CLIP pixels of every frame, and the prompt's ids with ``-200`` for the scene."""
        asked = loaded.question if question is None else clean_question(question)
        with span("pixels"):
            pixels = self._event_processor(list(loaded.frames), return_tensors="np")["pixel_values"]
        with span("tokenize"):
            ids = tokenize_prompt(build_prompt(asked), self._tokenizer)
        with span("upload"):
            pixel_values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, self.dtype)
            input_ids = torch.tensor([ids], device=self.device)
        return self._prepared(input_ids, pixel_values, loaded.media_sha256, asked, len(loaded.frames))

    @torch.no_grad()
    def encode(self, prepared: Prepared) -> Features:
        """All frames in one batch through tower, projector, adaptor and pooling."""
        network = self.model.model
        with span("tower"), reproducible_attention():
            hidden = network.visual_tower(prepared.pixel_values)
        with span("projector"):
            projected = network.visual_projector(hidden)
        with span("pooling"):
            tensor = network.finish_features(projected)
        return Features(
            tensor,
            Provenance(
                model_fingerprint=self.fingerprint,
                family=self.family,
                media_sha256=prepared.media_sha256,
                num_frames=prepared.num_frames,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
            ),
        )

    @torch.no_grad()
    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Replaces ``-200`` by the features."""
        require_fit(features, self.expected_provenance())
        if prepared.media_tokens != features.tensor.shape[0]:
            raise FeaturesError(
                "features", found=f"{features.tensor.shape[0]} positions", expected=f"{prepared.media_tokens}"
            )
        ids = prepared.input_ids[0]
        at = int((ids == EVENT_INDEX).nonzero()[0])
        embed = self.model.get_input_embeddings()
        scene = features.tensor.to(self.device)
        embeds = torch.cat([embed(ids[:at]), scene, embed(ids[at + 1 :])]).unsqueeze(0)
        keys: tuple[int, ...] = ()
        if digest:
            text = ids.tolist()
            keys = (*text[:at], *(-1 - i for i in range(len(scene))), *text[at + 1 :])
        return Prompt(inputs_embeds=embeds, token_keys=keys, features_digest=features.digest if digest else None)

    def tokenize(self, question: str, features: Features) -> Prepared:
        """The ids of a further question; there are no pixels to prepare."""
        asked = clean_question(question)
        with span("tokenize"):
            ids = tokenize_prompt(build_prompt(asked), self._tokenizer)
        with span("upload"):
            input_ids = torch.tensor([ids], device=self.device)
        nothing = torch.empty(0, 3, 0, 0, device=self.device, dtype=self.dtype)
        source = features.provenance
        return self._prepared(input_ids, nothing, source.media_sha256, asked, source.num_frames)

    def decode_text(self, token_ids: tuple[int, ...]) -> str:
        """Without special tokens, stripped."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()

    def fused_generate(self, prepared: Prepared, *, max_new_tokens: int, ignore_eos: bool = False) -> Fused:
        """The published ``generate(event_tensors=...)``."""
        with reproducible_attention():
            output = self.model.generate(
                prepared.input_ids,
                event_tensors=list(prepared.pixel_values),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                min_new_tokens=max_new_tokens if ignore_eos else None,
                return_dict_in_generate=True,
                output_logits=True,
            )
        logits = torch.cat([step.float() for step in output.logits])
        return Fused(tuple(output.sequences[0].tolist()), logits)

    def expected_provenance(self) -> Provenance:
        """This model's side of the comparison."""
        return Provenance(
            model_fingerprint=self.fingerprint,
            family=self.family,
            media_sha256="",
            num_frames=0,
            dtype=str(self.dtype).removeprefix("torch."),
            shape=(self.model.config.hidden_size,),
        )

    def vision_modules(self) -> Mapping[str, tuple[Any, int]]:
        """Each runs once a sample: the frames are one batch."""
        network = self.model.model
        return {"tower": (network.visual_tower.visual_tower, 1), "projector": (network.visual_projector, 1)}

    def _prepared(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        media_sha256: str,
        question: str,
        num_frames: int,
    ) -> Prepared:
        text_tokens = input_ids.shape[1] - 1
        media_tokens = num_frames + self.model.num_patches
        limit = self.model.config.tokenizer_model_max_length
        if text_tokens + media_tokens > limit:
            raise PromptError(
                f"question {question[:60]!r}...",
                found=f"a prompt of {text_tokens + media_tokens} positions",
                expected=f"at most {limit}",
                fix="ask a shorter question",
            )
        return Prepared(
            input_ids=input_ids,
            pixel_values=pixel_values,
            media_sha256=media_sha256,
            question=question,
            text_tokens=text_tokens,
            media_tokens=media_tokens,
        )
