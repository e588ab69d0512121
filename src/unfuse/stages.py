"""The five stages and the value that crosses each border.

::

    Sample --load--> Loaded --preprocess--> Prepared --encode--> Features --prefill--> Prefilled --decode--> Generation

Every value is immutable and says what it holds: shapes, dtypes, where it lives. This module knows no model, no file
format and no clock; torch appears in types only.

Shape letters: F frames, H height or hidden width, W width, P patches + 1 per frame, N feature positions, L token ids.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from unfuse.errors import PromptError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

STAGES: Final = ("load", "preprocess", "encode", "prefill", "decode")
"""In the order they run. ``generate`` of the 4-stage view is ``prefill`` + ``decode``."""

DEFAULT_QUESTION: Final = "What are the key elements in this scene?"

StopReason = Literal["eos", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. The default is greedy."""

    temperature: float = 0.0
    """0 takes the largest logit."""
    top_p: float = 1.0
    seed: int = 0
    """Seeds the generator of one answer; unused when greedy."""
    ignore_eos: bool = False
    """Never choose an end token, so that an answer has exactly ``max_new_tokens`` tokens (equal work)."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise PromptError("temperature", found=self.temperature, expected="a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise PromptError("top_p", found=self.top_p, expected="a number above 0 and up to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Out of ``load``: pictures in host memory."""

    frames: list[NDArray[np.uint8]]
    """F read-only RGB arrays ``[H, W, 3]``; sizes may differ."""
    media: str
    """Which medium of the sample was used: ``event_data``, ``event_image``, ``video``, ``video_frames``, ``image``,
    ``frames`` or ``text`` (none)."""
    media_sha256: str
    """Of the file bytes, the window and the representation together."""
    question: str
    num_events: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Out of ``preprocess``: what the networks take in."""

    input_ids: torch.Tensor
    """int64 ``[1, L]`` on the model's device, with the family's media placeholder."""
    pixel_values: torch.Tensor
    """What the tower takes in, on the model's device in its dtype: ``[F, 3, H, W]``, or as the family shapes it. Empty
    where nothing is to be encoded: a prompt of text alone, or a further question."""
    media_sha256: str
    question: str
    num_frames: int
    """F."""
    text_tokens: int
    """Prompt positions that are text."""
    media_tokens: int
    """Prompt positions that are features."""
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Further arguments of the family's forward by their own names (masks, sizes, grids), its pixels among them."""
    frame_sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) of every frame before preprocessing."""
    token_ids: tuple[int, ...] = ()
    """The same ids on the host, where they are known there: a look at the device waits for all work before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where features come from; two features with equal provenance are interchangeable."""

    model_fingerprint: str
    """Of the config, every tensor and the pixel settings of the model that encoded."""
    family: str
    media_sha256: str
    num_frames: int
    dtype: str
    shape: tuple[int, ...]


class Later:
    """A field that is given as a tensor, or as a call that makes it when somebody first asks for it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._made, self._make = f"_{name}", f"_make_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> torch.Tensor: ...
    def __get__(self, instance: object | None, owner: type) -> torch.Tensor | Self:
        if instance is None:
            raise AttributeError("a field without a default")
        own = vars(instance)
        if own[self._made] is None:
            own[self._made], own[self._make] = own[self._make](), None
        made: torch.Tensor = own[self._made]
        return made

    def __set__(self, instance: object, value: torch.Tensor | Callable[[], torch.Tensor]) -> None:
        later = callable(value)
        vars(instance)[self._made] = None if later else value
        vars(instance)[self._make] = value if later else None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a Stage-4 engine takes in: text embeddings with the features in their place."""

    inputs_embeds: Later = Later()
    """``[1, L, H]``; ``[B, L, H]`` for prompts padded on the left to one length.

    May be given as a call that makes it: whoever does that gives ``token_keys``, whose text stands for its rows of the
    embedding. A further question needs its own rows only, and the scene's are then never put together again.
    """
    token_keys: tuple[int, ...] = ()
    """One a position: the token id for text, ``-1 - i`` for the i-th feature."""
    features_digest: str | None = None
    """Of the features' values; None where no prefix is to be reused, and then nothing is hashed."""
    position_ids: torch.Tensor | None = None
    """``[B, L]``, or ``[3 or 4, B, L]`` under M-RoPE; None counts from 0."""
    attention_mask: torch.Tensor | None = None
    """``[B, L]``, 0 where a row is padded; None for a single prompt."""
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict)
    """What else the family gives its decoder with the prompt: masks that are not causal."""
    scene_inputs: Mapping[str, Any] = field(default_factory=dict)
    """The same for what acts at feature positions only: features of deeper layers (DeepStack)."""

    @property
    def length(self) -> int:
        """L, without making the embeddings."""
        return len(self.token_keys) or self.inputs_embeds.shape[1]

    def text_after(self, position: int) -> tuple[int, ...] | None:
        """Token ids from there on, where they say all that the embeddings, which nobody has made, would say."""
        ids = self.token_keys[position:]
        unmade = vars(self)["_inputs_embeds"] is None
        return ids if unmade and self.position_ids is None and all(map(operator.le, repeat(0), ids)) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """Out of ``prefill``: the first token exists."""

    token_id: int
    logits: torch.Tensor
    """float32 ``[V]``, of the last prompt position, before sampling."""
    prompt_tokens: int
    reused_prefix_tokens: int
    """Of the prompt, positions whose keys and values were taken over from an earlier question."""
    sampling: Sampling
    state: Any
    """The engine's own: cache, generator, position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Out of ``decode``: the answer."""

    token_ids: tuple[int, ...]
    """The new tokens, the end token included where the model wrote it."""
    text: str
    """Decoded without special tokens, stripped."""
    stop_reason: StopReason
    prompt_tokens: int
    reused_prefix_tokens: int = 0

    @property
    def output_tokens(self) -> int:
        """Number of new tokens."""
        return len(self.token_ids)
