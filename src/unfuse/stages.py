"""The five stages and the value that each stage returns.

::

    Sample --load--> Loaded --preprocess--> Prepared --encode--> Features --prefill--> Prefilled --decode--> Generation

Every value is immutable and documents its shapes, dtypes and devices. This module depends on no model, no file format
and no clock; torch appears in types only.

Shape letters: F frames, H height or hidden width, W width, P patches + 1 per frame, N feature positions, L token ids.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from unfuse.errors import PromptError
from unfuse.speculation.drafter import SpeculationCounts

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

STAGES: Final = ("load", "preprocess", "encode", "prefill", "decode")
"""Names in the order in which the stages run. ``generate`` of the 4-stage view is ``prefill`` + ``decode``."""

DEFAULT_QUESTION: Final = "What are the key elements in this scene?"

StopReason = Literal["eos", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling parameters; the default is greedy."""

    temperature: float = 0.0
    """0 selects the argmax of the logits."""
    top_p: float = 1.0
    seed: int = 0
    """Any integer; with the position of a token it determines the noise of the draw. Unused when greedy."""
    ignore_eos: bool = False
    """Mask end tokens, so that an answer has exactly ``max_new_tokens`` tokens (equal work)."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise PromptError("temperature", found=self.temperature, expected="a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise PromptError("top_p", found=self.top_p, expected="a number above 0 and up to 1")
        try:
            object.__setattr__(self, "seed", operator.index(self.seed))  # an int, also from numpy
        except TypeError:
            raise PromptError("seed", found=repr(self.seed), expected="an integer") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Output of ``load``: frames in host memory."""

    frames: list[NDArray[np.uint8]]
    """F read-only RGB arrays ``[H, W, 3]``; sizes may differ."""
    media: str
    """Medium of the sample that was used: ``event_data``, ``event_image``, ``video``, ``video_frames``, ``image``,
    ``frames`` or ``text`` (none)."""
    media_sha256: str
    """Hash of file bytes, time window and representation together."""
    question: str
    num_events: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Output of ``preprocess``: inputs of the networks."""

    input_ids: torch.Tensor
    """int64 ``[1, L]`` on the model's device, with the family's media placeholder."""
    pixel_values: torch.Tensor
    """Input of the vision tower, on the model's device in its dtype: ``[F, 3, H, W]``, or in the family's shape. Empty
    for a prompt of text alone and for a further question."""
    media_sha256: str
    question: str
    num_frames: int
    """F, the number of frames."""
    text_tokens: int
    """Number of text positions in the prompt."""
    media_tokens: int
    """Number of feature positions in the prompt."""
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """All arguments of the family's forward by name: pixels, masks, sizes, grids."""
    frame_sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) of every frame before preprocessing."""
    token_ids: tuple[int, ...] = ()
    """``input_ids`` on the host, if available: reading them from the device waits for all earlier work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Origin of features; features with equal provenance are interchangeable."""

    model_fingerprint: str
    """Hash of config, all tensors and pixel settings of the encoding model."""
    family: str
    media_sha256: str
    num_frames: int
    dtype: str
    shape: tuple[int, ...]


class LazyTensor:
    """A field that is given as a tensor, or as a call that makes the tensor when it is first read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._value, self._make = f"_{name}", f"_make_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> torch.Tensor: ...
    def __get__(self, instance: object | None, owner: type) -> torch.Tensor | Self:
        if instance is None:
            raise AttributeError("a field without a default")
        own = vars(instance)
        if own[self._value] is None:
            own[self._value], own[self._make] = own[self._make](), None
        value: torch.Tensor = own[self._value]
        return value

    def __set__(self, instance: object, value: torch.Tensor | Callable[[], torch.Tensor]) -> None:
        lazy = callable(value)
        vars(instance)[self._value] = None if lazy else value
        vars(instance)[self._make] = value if lazy else None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Input of a Stage-4 engine: text embeddings with the features in their place."""

    inputs_embeds: LazyTensor = LazyTensor()
    """``[1, L, H]``; ``[B, L, H]`` for prompts padded on the left to one length.

    A call that makes the tensor is accepted together with ``token_keys``: their text ids replace the embeddings. A
    further question needs its own rows only, and the scene's rows are then never made again.
    """
    token_keys: tuple[int, ...] = ()
    """One key for each position: the token id for text, ``-1 - i`` for the i-th feature."""
    features_digest: str | None = None
    """Hash of the features' values; None if no prefix is to be reused."""
    position_ids: torch.Tensor | None = None
    """``[B, L]``, or ``[3 or 4, B, L]`` under M-RoPE; None counts from 0."""
    attention_mask: torch.Tensor | None = None
    """``[B, L]``, 0 for padding; None for a single prompt."""
    decoder_inputs: Mapping[str, Any] = field(default_factory=dict)
    """Further inputs of the family's decoder: masks that are not causal."""
    scene_inputs: Mapping[str, Any] = field(default_factory=dict)
    """Further inputs at feature positions only: features of deeper layers (DeepStack)."""

    @property
    def length(self) -> int:
        """Prompt length L; does not make the embeddings."""
        return len(self.token_keys) or self.inputs_embeds.shape[1]

    def text_after(self, position: int) -> tuple[int, ...] | None:
        """Return the token ids from ``position`` on, if only text follows and the embeddings are not made yet."""
        ids = self.token_keys[position:]
        lazy = vars(self)["_inputs_embeds"] is None
        return ids if lazy and self.position_ids is None and all(map(operator.le, repeat(0), ids)) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """Output of ``prefill``: the state after the first token."""

    token_id: int
    logits: torch.Tensor
    """float32 ``[V]`` at the last prompt position, before sampling."""
    prompt_tokens: int
    reused_prefix_tokens: int
    """Prompt positions with keys and values reused from an earlier question."""
    sampling: Sampling
    state: Any
    """Internal state of the engine: cache and position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Output of ``decode``: the answer."""

    token_ids: tuple[int, ...]
    """New tokens, with the end token if the model generated it."""
    text: str
    """Text without special tokens, stripped."""
    stop_reason: StopReason
    prompt_tokens: int
    reused_prefix_tokens: int = 0
    speculation: SpeculationCounts | None = None
    """Decode passes with their drafted and accepted tokens; None without speculation."""

    @property
    def output_tokens(self) -> int:
        """Number of new tokens."""
        return len(self.token_ids)
