"""A loaded model with its stages apart: what ``unfuse.load`` gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from unfuse.adapters.base import Adapter
from unfuse.adapters.pieces import TextPieces
from unfuse.engines import ENGINES, Engine
from unfuse.engines.batching import ContinuousBatch, Request
from unfuse.engines.fused_only import FusedOnly
from unfuse.errors import CutError, DeviceError, PromptError
from unfuse.features import Features
from unfuse.samples import Sample
from unfuse.stages import Generation, Loaded, Prefilled, Prepared, Sampling
from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    import torch
    from torch import nn

_GREEDY = Sampling()


class StagedModel:
    """The five stages of one model as separate calls.

    ``generate`` and ``stream`` keep the keys and values of the scene they were last asked about: a further question on
    the same features prefills its own text only. The stage calls themselves reuse nothing.
    """

    def __init__(self, name: str, adapter: Adapter, engine: Engine, notes: tuple[str, ...] = ()):
        self.name = name
        self.adapter = adapter
        self.engine = engine
        self._notes = notes

    @property
    def family(self) -> str:
        """The adapter's family name."""
        return self.adapter.family

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the config, every tensor and the pixels' settings."""
        return self.adapter.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a report must know of the model and the engine."""
        return (*self.adapter.notes, *self._notes, *self.engine.notes)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.adapter.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.adapter.dtype

    def load(self, sample: Sample) -> Loaded:
        """Stage 1: bytes on disk to frames."""
        return self.adapter.load(sample)

    def media_sha256(self, sample: Sample) -> str:
        """Hash of what ``load`` would show, at the price of hashing the files: nothing is decoded or drawn."""
        return self.adapter.media_sha256(sample)

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Stage 2: pixel values on the device and token ids; ``question`` stands for the sample's own."""
        return self.adapter.preprocess(loaded, question)

    def encode(self, source: Sample | Prepared) -> Features:
        """Stage 3 from prepared inputs; stages 1 to 3 from a sample."""
        if isinstance(source, Sample):
            source = self.preprocess(self.load(source))
        _require_pixels(source)
        with self.engine.encoding():
            return self.adapter.encode(source)

    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Stage 3 of several samples: in one batch those that the family's tower takes so."""
        for one in prepared:
            _require_pixels(one)
        with self.engine.encoding():
            return self.adapter.encode_batch(prepared)

    def prefill(
        self, prepared: Prepared, features: Features, sampling: Sampling = _GREEDY, *, reuse: bool = False
    ) -> Prefilled:
        """Stage 4, first half: the prompt's keys and values, and the first token.

        Raises:
            FeaturesError: the features are another model's.
        """
        prompt = self.adapter.prompt(prepared, features, digest=reuse)
        return self.engine.prefill(prompt, sampling, reuse=reuse)

    def decode(self, prefilled: Prefilled, max_new_tokens: int = 512) -> Generation:
        """Stage 4, second half: every later token."""
        _require_tokens(max_new_tokens)
        token_ids = tuple(self.engine.decode(prefilled, max_new_tokens))
        return self.answer(token_ids, prefilled.prompt_tokens, prefilled.reused_prefix_tokens)

    def generate(
        self,
        question: str,
        features: Features,
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = _GREEDY,
        reuse: bool = True,
    ) -> Generation:
        """Stage 4 alone: an answer about features encoded before."""
        _require_tokens(max_new_tokens)
        prepared = self.adapter.tokenize(question, features)
        return self.decode(self.prefill(prepared, features, sampling, reuse=reuse), max_new_tokens)

    def fused(self, prepared: Prepared, max_new_tokens: int = 512, sampling: Sampling = _GREEDY) -> Generation:
        """The model's own ``generate`` from pixels: what the stages are the parts of."""
        _require_tokens(max_new_tokens)
        answer = self.adapter.fused_generate([prepared], max_new_tokens=max_new_tokens, sampling=sampling)[0]
        return self.answer(answer.token_ids, prepared.text_tokens + prepared.media_tokens)

    def generate_batch(
        self,
        questions: Sequence[str],
        features: Sequence[Features],
        *,
        max_new_tokens: int = 512,
        sampling: Sampling = _GREEDY,
    ) -> list[Generation]:
        """Stage 4 of several prompts together, padded to one length: question i is about features i."""
        _require_tokens(max_new_tokens)
        if not questions or len(questions) != len(features):
            raise PromptError("batch", found=f"{len(questions)} questions", expected=f"{len(features)}, one a scene")
        prepared = [self.adapter.tokenize(q, f) for q, f in zip(questions, features, strict=True)]
        prompt = self.adapter.prompt_batch(list(zip(prepared, features, strict=True)))
        answers = self.engine.answer_batch(prompt, sampling, max_new_tokens)
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
        """A question about features, as ``continuous`` takes it: its words, or what stage 2 made of them.

        Raises:
            FeaturesError: the features are another model's.
        """
        _require_tokens(max_new_tokens)
        prepared = self.adapter.tokenize(question, features) if isinstance(question, str) else question
        return Request(
            request_id=request_id,
            prompt=self.adapter.prompt(prepared, features, digest=reuse),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            reuse=reuse,
        )

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """Stage 4 of requests that come and go, written together; see ``Engine.continuous``."""
        return self.engine.continuous(capacity, interleave=interleave)

    def answer(self, token_ids: tuple[int, ...], prompt_tokens: int, reused_prefix_tokens: int = 0) -> Generation:
        """Tokens that an engine wrote, as an answer."""
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
        """The answer's text as it is written; the pieces joined are ``generate``'s text."""
        _require_tokens(max_new_tokens)
        prepared = self.adapter.tokenize(question, features)
        prefilled = self.prefill(prepared, features, sampling, reuse=reuse)
        pieces = TextPieces(self.adapter.decode_text)
        for token in self.engine.decode(prefilled, max_new_tokens):
            if piece := pieces.add(token):
                yield piece
        if rest := pieces.end():
            yield rest

    def close(self) -> None:
        """Frees what the engine holds."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require_pixels(prepared: Prepared) -> None:
    if prepared.media_tokens and not prepared.pixel_values.numel():
        raise PromptError("encode", found="a prompt without pixels", expected="what preprocess gives")


def _require_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise PromptError("max_new_tokens", found=max_new_tokens, expected="at least 1")


def pick_engine(name: str, adapter: Adapter) -> tuple[Engine, tuple[str, ...]]:
    """The engine of that name, and what is to be said of the choice.

    ``auto`` is ``graphed`` on a CUDA device and ``eager`` elsewhere. Where ``graphed`` or ``vllm`` cannot serve the
    model or the device, ``eager`` takes its place, and the reason is among the notes. None is needed where nothing can
    be cut.

    Raises:
        DeviceError: no such engine.
    """
    if name not in ENGINES:
        raise DeviceError("engine", found=repr(name), expected=", ".join(ENGINES))
    if adapter.uncut is not None:
        return FusedOnly(adapter.uncut), ()
    from unfuse.engines.eager import EagerEngine

    if name == "eager" or (name == "auto" and adapter.device.type != "cuda"):
        return EagerEngine(adapter.language), ()
    wanted = "vllm" if name == "vllm" else "graphed"
    if adapter.device.type != "cuda":
        engine: Engine | Unavailable = Unavailable(f"it needs a CUDA device, and the model is on {adapter.device}")
    else:
        engine = _vllm(adapter) if wanted == "vllm" else _graphed(adapter)
    if isinstance(engine, Unavailable):
        return EagerEngine(adapter.language), (f"engine eager in the place of {wanted}: {engine.reason}",)
    return engine, ()


def _graphed(adapter: Adapter) -> Engine | Unavailable:
    try:
        from triton.errors import TritonError
    except ImportError:
        return Unavailable("triton is not installed")
    from unfuse.engines.graphed.engine import GraphedEngine
    from unfuse.engines.unsupported import Unsupported

    try:
        return GraphedEngine(adapter.language, _vision(adapter))
    except Unsupported as reason:
        return Unavailable(str(reason))
    except (RuntimeError, TritonError) as reason:
        # A device without the memory, a compiler without the device: the answer is worth more than its speed.
        return _unbuilt(reason)


def _vllm(adapter: Adapter) -> Engine | Unavailable:
    from unfuse.engines.unsupported import Unsupported

    try:
        from unfuse.engines.vllm.engine import VllmEngine

        return VllmEngine(adapter.language, _vision(adapter))
    except Unsupported as reason:
        return Unavailable(str(reason))
    except (ImportError, RuntimeError, ValueError, NotImplementedError, AssertionError) as reason:
        # Another torch than it was compiled for, sizes that no kernel of it takes, too little memory.
        return _unbuilt(reason)


def _unbuilt(reason: Exception) -> Unavailable:
    line = next(iter(str(reason).strip().splitlines()), "")
    return Unavailable(f"it could not be built ({type(reason).__name__}: {line})")


def _vision(adapter: Adapter) -> Mapping[str, nn.Module]:
    try:
        return adapter.vision_modules()
    except CutError:
        return {}  # encoded in the model's own way
