"""Where a fused model is cut. An adapter is the only code that knows a model family.

It gives stages 1 to 3 and the prompt that stage 4 takes, and keeps the model's own fused ``generate`` callable, so that
the parts can be proved equal to the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from unfuse.features import Features
from unfuse.samples import Sample
from unfuse.stages import Loaded, Prepared, Prompt, Provenance, Sampling

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unfuse.engines.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a prompt must know of the scene that it is about: everything but the pixels."""

    media_sha256: str
    num_frames: int
    media_tokens: int
    """Prompt positions that are features."""
    frame_sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) of every frame before preprocessing, where a prompt depends on it."""


class Front(Protocol):
    """Stages 1 and 2 without the network: config, tokenizer and pixel settings alone, in any process of the host."""

    family: str
    notes: tuple[str, ...]
    """What a reader of a report must know of how pixels are made."""

    def media_sha256(self, sample: Sample) -> str:
        """What ``load`` says of the media, from the files' bytes alone: nothing is decoded.

        Raises:
            FileAccessError: a file is missing or unreadable.
        """

    def load(self, sample: Sample) -> Loaded:
        """Stage 1: bytes on disk to frames."""

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Stage 2 up to the upload: frames to pixel values in the model's dtype, text to token ids, on the CPU."""

    def tokenize(self, question: str, scene: Shown) -> Prepared:
        """The same for a further question about a scene: no pixels. ``Adapter.recall`` completes it."""

    def shown(self, features: Features) -> Shown:
        """What a further question must know of the scene that these features are of."""

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Tokens to text, without special ones, stripped."""


def shown(prepared: Prepared) -> Shown:
    """The same of a scene that was prepared and is not encoded yet."""
    return Shown(
        media_sha256=prepared.media_sha256,
        num_frames=prepared.num_frames,
        media_tokens=prepared.media_tokens,
        frame_sizes=prepared.frame_sizes,
    )


@dataclass(frozen=True, slots=True)
class Fused:
    """What the model's own ``generate`` gave for one prompt."""

    token_ids: tuple[int, ...]
    """The new tokens, end token included."""
    logits: torch.Tensor | None = None
    """float32 ``[len(token_ids), V]``, what each was chosen from; None where it was not asked for."""


class Adapter(Protocol):
    """One loaded model of one family."""

    family: str
    model: Any
    """The Hugging Face model."""
    fingerprint: str
    notes: tuple[str, ...]
    """What a reader of a report must know: random weights, added tokens, ..."""
    uncut: str | None
    """Why this model's stages cannot be taken apart; None where they can. The fused call works either way."""

    @property
    def front(self) -> Front:
        """Its stages 1 and 2, which another process may run as well."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def language(self) -> LanguageModel:
        """What an engine runs.

        Raises:
            CutError: the model cannot be cut.
        """

    def load(self, sample: Sample) -> Loaded:
        """Stage 1: bytes on disk to frames."""

    def media_sha256(self, sample: Sample) -> str:
        """What ``load`` would say of its frames, without decoding anything."""

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Stage 2: frames to pixel values on the device, text to token ids."""

    def upload(self, prepared: Prepared) -> Prepared:
        """The end of stage 2: what ``front.preprocess`` gave, on the device. From pinned memory it does not wait."""

    def recall(self, prepared: Prepared, features: Features) -> Prepared:
        """The same for what ``front.tokenize`` gave: sizes and grids come with the features."""

    def encode(self, prepared: Prepared) -> Features:
        """Stage 3: every frame, and everything that happens on the vision side."""

    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """The same for several samples: in one batch those that the family's tower takes so."""

    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Text embeddings with the features in their place; never touches the tower.

        Raises:
            FeaturesError: the features are not this model's.
        """

    def prompt_batch(self, items: Sequence[tuple[Prepared, Features]]) -> Prompt:
        """Several prompts, padded on the left to one length."""

    def tokenize(self, question: str, features: Features) -> Prepared:
        """Stage 2 for a further question about encoded features."""

    def decode_text(self, token_ids: tuple[int, ...]) -> str:
        """Tokens to text, without special ones."""

    def fused_generate(
        self, prepared: Sequence[Prepared], *, max_new_tokens: int, sampling: Sampling, logits: bool = False
    ) -> list[Fused]:
        """The model's own ``generate`` from pixels, for one prompt or a padded batch of them."""

    def expected_provenance(self) -> Provenance:
        """What features of this model must say."""

    def vision_modules(self) -> Mapping[str, nn.Module]:
        """Modules of the vision side by name: ``tower`` or several such, then projectors.

        Raises:
            CutError: no tower can be found.
        """

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """How often ``encode`` calls each of them for this prompt."""
