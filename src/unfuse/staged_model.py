"""A loaded model with separate stages: the result of ``unfuse.load``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from unfuse.adapters.base import Adapter
from unfuse.adapters.detokenizer import IncrementalDetokenizer
from unfuse.engines import Engine
from unfuse.engines.batching import ContinuousBatch, Request
from unfuse.errors import NonFiniteError, PromptError
from unfuse.features import Features
from unfuse.finite import INVALID_TOKEN
from unfuse.samples import Sample
from unfuse.speculation.drafter import Drafter, Drafts
from unfuse.stages import Generation, Loaded, Prefilled, Prepared, Sampling

if TYPE_CHECKING:
    import torch

_GREEDY = Sampling()


class StagedModel:
    """The five stages of one model as separate calls.

    ``generate`` and ``stream`` cache the keys and values of the last scene: a further question on the same features
    prefills its own text only. ``prefill`` reuses nothing unless ``reuse=True``.
    """

    def __init__(
        self,
        name: str,
        adapter: Adapter,
        engine: Engine,
        notes: tuple[str, ...] = (),
        drafter: Drafter | None = None,
    ):
        self.name = name
        self.adapter = adapter
        self.engine = engine
        self.drafter = drafter
        """Drafts for the answers of ``generate`` and ``stream``, and for those whose drafts a caller passes."""
        self.settings_sha256 = ""
        """Hash of the checkpoint's configs, tokenizer, chat template and generation settings; empty without files."""
        self._notes = notes

    def with_drafter(self, drafter: Drafter | None, notes: tuple[str, ...] = ()) -> StagedModel:
        """Return this model with another drafter, or none. Both share the engine: close one of them only."""
        model = copy(self)
        model.drafter, model._notes = drafter, (*self._notes, *notes)
        return model

    @property
    def family(self) -> str:
        """Family name of the adapter."""
        return self.adapter.family

    @property
    def fingerprint(self) -> str:
        """SHA-256 of config, all tensors and pixel settings."""
        return self.adapter.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for a report about the model and the engine."""
        return (*self.adapter.notes, *self._notes, *self.engine.notes)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.adapter.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the computation."""
        return self.adapter.dtype

    def load(self, sample: Sample) -> Loaded:
        """Run stage 1: bytes on disk to frames."""
        return self.adapter.load(sample)

    def media_sha256(self, sample: Sample) -> str:
        """Return the hash of the media that ``load`` would return; hashes files and decodes nothing."""
        return self.adapter.media_sha256(sample)

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Run stage 2: pixel values on the device and token ids; ``question`` replaces the sample's own."""
        return self.adapter.preprocess(loaded, question)

    def encode(self, source: Sample | Prepared) -> Features:
        """Run stage 3 on prepared inputs, or stages 1 to 3 on a sample.

        Raises:
            NonFiniteError: the features are not finite. On a GPU ``prefill`` raises it, which waits for the device.
        """
        if isinstance(source, Sample):
            source = self.preprocess(self.load(source))
        _require_pixels(source)
        with self.engine.encoding():
            return _watched(self.adapter.encode(source))

    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Run stage 3 of several samples, in one batch if the family's tower accepts it.

        Raises:
            NonFiniteError: as ``encode``, if the features of any sample are not finite.
        """
        for one in prepared:
            _require_pixels(one)
        with self.engine.encoding():
            return [_watched(features) for features in self.adapter.encode_batch(prepared)]

    def prefill(
        self, prepared: Prepared, features: Features, sampling: Sampling = _GREEDY, *, reuse: bool = False
    ) -> Prefilled:
        """Run the first half of stage 4: the prompt's keys and values, and the first token.

        Raises:
            FeaturesError: the features belong to another model.
            NonFiniteError: the features or the logits are not finite.
        """
        features.watch_finite()
        prompt = self.adapter.prompt(prepared, features, digest=reuse)
        try:
            prefilled = self.engine.prefill(prompt, sampling, reuse=reuse)
        except NonFiniteError:
            features.require_finite()
            raise
        # The engine has waited for the device, so the flag is ready.
        features.require_finite()
        return prefilled

    def drafts(self, prepared: Prepared) -> Drafts | None:
        """Return the drafts of an answer to a prompt; None without a drafter."""
        if self.drafter is None:
            return None
        return self.drafter.begin(prepared.token_ids or prepared.input_ids[0].tolist())

    def decode(self, prefilled: Prefilled, max_new_tokens: int = 512, drafts: Drafts | None = None) -> Generation:
        """Run the second half of stage 4: all later tokens.

        Args:
            prefilled: from ``prefill``.
            max_new_tokens: tokens at most.
            drafts: from ``drafts``, for this answer alone; the answer is the same with and without them.

        Raises:
            NonFiniteError: logits are not finite.
        """
        _require_tokens(max_new_tokens)
        token_ids = tuple(self.engine.decode(prefilled, max_new_tokens, drafts))
        answer = self.answer(token_ids, prefilled.prompt_tokens, prefilled.reused_prefix_tokens)
        return answer if drafts is None else replace(answer, speculation=deepcopy(drafts.counts))

    def generate(
        self,
        question: str,
        features: Features,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = _GREEDY,
        reuse: bool = True,
    ) -> Generation:
        """Run stage 4 alone: answer a question about encoded features."""
        _require_tokens(max_new_tokens)
        prepared = self.adapter.tokenize(question, features)
        prefilled = self.prefill(prepared, features, sampling, reuse=reuse)
        answer = self.decode(prefilled, max_new_tokens, self.drafts(prepared))
        self._learn(answer.token_ids)
        return answer

    def fused(self, prepared: Prepared, max_new_tokens: int = 512, sampling: Sampling = _GREEDY) -> Generation:
        """Run the model's own ``generate`` from pixels, without stages.

        Raises:
            NonFiniteError: logits are not finite.
        """
        _require_tokens(max_new_tokens)
        try:
            answer = self.adapter.fused_generate([prepared], max_new_tokens=max_new_tokens, sampling=sampling)[0]
        except NonFiniteError as error:
            # The call does not show the features. Only a failure is worth a second encode.
            if error.stage == "prefill" and self.adapter.unsplittable is None:
                self.encode(prepared).require_finite()
            raise
        return self.answer(answer.token_ids, prepared.text_tokens + prepared.media_tokens)

    def generate_batch(
        self,
        questions: Sequence[str],
        features: Sequence[Features],
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = _GREEDY,
    ) -> list[Generation]:
        """Run stage 4 of several prompts together, padded to one length; question i is about features i.

        Raises:
            NonFiniteError: features or logits of a row are not finite; the message names the rows.
        """
        _require_tokens(max_new_tokens)
        if not questions or len(questions) != len(features):
            raise PromptError("batch", found=f"{len(questions)} questions", expected=f"{len(features)}, one per scene")
        prepared = [self.adapter.tokenize(q, f) for q, f in zip(questions, features, strict=True)]
        prompt = self.adapter.prompt_batch(list(zip(prepared, features, strict=True)))
        answers = self.engine.answer_batch(prompt, sampling, max_new_tokens)
        _require_rows(answers, features)
        lengths = [p.text_tokens + p.media_tokens for p in prepared]
        return [self.answer(ids, length) for ids, length in zip(answers, lengths, strict=True)]

    def request(
        self,
        request_id: str,
        question: str | Prepared,
        features: Features,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = _GREEDY,
        reuse: bool = False,
    ) -> Request:
        """Return a request for ``continuous``; the question is text, or its prepared prompt.

        Raises:
            FeaturesError: the features belong to another model.
        """
        _require_tokens(max_new_tokens)
        features.watch_finite()
        prepared = self.adapter.tokenize(question, features) if isinstance(question, str) else question
        return Request(
            request_id=request_id,
            prompt=self.adapter.prompt(prepared, features, digest=reuse),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            reuse=reuse,
            require_inputs=features.require_finite,
        )

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """Return a continuous batch; see ``Engine.continuous``."""
        return self.engine.continuous(capacity, interleave=interleave)

    def answer(self, token_ids: tuple[int, ...], prompt_tokens: int, reused_prefix_tokens: int = 0) -> Generation:
        """Return the answer with these tokens."""
        ended = bool(token_ids) and token_ids[-1] in self.adapter.end_ids
        return Generation(
            token_ids=token_ids,
            text=self.adapter.decode_text(token_ids),
            stop_reason="eos" if ended else "length",
            prompt_tokens=prompt_tokens,
            reused_prefix_tokens=reused_prefix_tokens,
        )

    def stream(
        self,
        question: str,
        features: Features,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = _GREEDY,
        reuse: bool = True,
    ) -> Iterator[str]:
        """Yield the answer's text while it is generated; the pieces joined are the text of ``generate``."""
        _require_tokens(max_new_tokens)
        prepared = self.adapter.tokenize(question, features)
        prefilled = self.prefill(prepared, features, sampling, reuse=reuse)
        detokenizer = IncrementalDetokenizer(self.adapter.decode_text)
        tokens = []
        try:
            for token in self.engine.decode(prefilled, max_new_tokens, self.drafts(prepared)):
                tokens.append(token)
                if delta := detokenizer.add(token):
                    yield delta
        finally:
            self._learn(tokens)
        if rest := detokenizer.end():
            yield rest

    def _learn(self, token_ids: Sequence[int]) -> None:
        if self.drafter is not None:
            self.drafter.learn(token_ids)

    def close(self) -> None:
        """Free the engine's memory, and end the drafter."""
        self.engine.close()
        if self.drafter is not None:
            self.drafter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_pixels(prepared: Prepared) -> None:
    if prepared.media_tokens and not prepared.pixel_values.numel():
        raise PromptError("encode", found="a prompt without pixels", expected="what preprocess gives")


def _watched(features: Features) -> Features:
    """Start to look for values that are not finite; on the CPU, where nothing is asynchronous, refuse them at once."""
    features.watch_finite()
    if features.tensor.device.type == "cpu":
        features.require_finite()
    return features


def _require_rows(answers: Sequence[tuple[int, ...]], features: Sequence[Features]) -> None:
    """Refuse the answers of a batch if a row failed."""
    bad = [index for index, (ids, each) in enumerate(zip(answers, features, strict=True))
           if ids[-1] == INVALID_TOKEN or not each.watch_finite()]  # fmt: skip
    if not bad:
        return
    features[bad[0]].require_finite()
    stage = "prefill" if len(answers[bad[0]]) == 1 else "decode"
    raise NonFiniteError(stage, "logits", found=f"NaN or infinity in row {', '.join(map(str, bad))} of {len(answers)}")


def _require_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise PromptError("max_new_tokens", found=max_new_tokens, expected="at least 1")
