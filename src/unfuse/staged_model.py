"""A loaded model with its stages apart: what ``unfuse.load`` gives."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from unfuse.adapters.base import Adapter
from unfuse.engines import Engine
from unfuse.errors import DeviceError, PromptError
from unfuse.features import Features
from unfuse.samples import Sample
from unfuse.stages import Generation, Loaded, Prefilled, Prepared, Sampling

if TYPE_CHECKING:
    import torch

_GREEDY = Sampling()


class StagedModel:
    """The five stages of one model as separate calls.

    ``generate`` and ``stream`` keep the keys and values of the scene they were last asked about: a further question on
    the same features prefills its own text only. The stage calls themselves reuse nothing.
    """

    def __init__(self, name: str, adapter: Adapter, engine: Engine):
        self.name = name
        self.adapter = adapter
        self.engine = engine

    @property
    def family(self) -> str:
        """The adapter's family name."""
        return self.adapter.family

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the config and every tensor."""
        return self.adapter.fingerprint

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

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Stage 2: pixel values on the device and token ids; ``question`` stands for the sample's own."""
        return self.adapter.preprocess(loaded, question)

    def encode(self, source: Sample | Prepared) -> Features:
        """Stage 3 from prepared inputs; stages 1 to 3 from a sample."""
        if isinstance(source, Sample):
            source = self.preprocess(self.load(source))
        if not source.num_frames:
            raise PromptError("encode", found="a prompt without pixels", expected="what preprocess gives")
        return self.adapter.encode(source)

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
        return self._answer(tuple(self.engine.decode(prefilled, max_new_tokens)), prefilled)

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
        ids: list[int] = []
        shown = ""
        for token in self.engine.decode(prefilled, max_new_tokens):
            ids.append(token)
            text = self.adapter.decode_text(tuple(ids))
            # A character may span several tokens; it is held back until it is whole.
            if text.startswith(shown) and not text.endswith("\ufffd") and text != shown:
                yield text[len(shown) :]
                shown = text
        text = self.adapter.decode_text(tuple(ids))
        if text != shown:
            yield text.removeprefix(shown)

    def close(self) -> None:
        """Frees what the engine holds."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, token_ids: tuple[int, ...], prefilled: Prefilled) -> Generation:
        ended = bool(token_ids) and self.engine.is_end(token_ids[-1])
        return Generation(
            token_ids=token_ids,
            text=self.adapter.decode_text(token_ids),
            stop_reason="eos" if ended else "length",
            prompt_tokens=prefilled.prompt_tokens,
            reused_prefix_tokens=prefilled.reused_prefix_tokens,
        )


def _require_tokens(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise PromptError("max_new_tokens", found=max_new_tokens, expected="at least 1")


def pick_engine(name: str, model: object) -> Engine:
    """The engine of that name; ``auto`` is ``eager``, the only one so far.

    Raises:
        DeviceError: no such engine.
    """
    if name not in ("auto", "eager"):
        raise DeviceError("engine", found=repr(name), expected="auto or eager")
    from unfuse.engines.eager import EagerEngine

    return EagerEngine(model)  # type: ignore[arg-type]  # adapters hold Hugging Face models
