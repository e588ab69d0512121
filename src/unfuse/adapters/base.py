"""The protocols of adapters. An adapter is the only code that knows a model family.

It implements stages 1 to 3 and builds the prompt of stage 4. It also calls the model's own fused ``generate``, so that
the stages can be proved equal to the fused model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from unfuse.adapters.media import Takes
from unfuse.features import Features
from unfuse.samples import Sample
from unfuse.stages import Loaded, Prepared, Prompt, Provenance, Sampling
from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from unfuse.adapters.expected_work import ExpectedWork
    from unfuse.engines.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneInfo:
    """Size and identity of a scene: all that a prompt about it depends on besides its text."""

    media_sha256: str
    num_frames: int
    media_tokens: int
    """Prompt positions that features replace."""
    frame_sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) of every frame before preprocessing, if the prompt depends on it."""

    @classmethod
    def of(cls, prepared: Prepared) -> Self:
        """Return the info of a scene that is prepared and may not be encoded yet."""
        return cls(
            media_sha256=prepared.media_sha256,
            num_frames=prepared.num_frames,
            media_tokens=prepared.media_tokens,
            frame_sizes=prepared.frame_sizes,
        )


class Preprocessor(Protocol):
    """Stages 1 and 2. Needs config, tokenizer and pixel settings but no weights, so any process can run it."""

    family: str
    notes: tuple[str, ...]
    """Notes for reports on how pixels are made."""

    def media_sha256(self, sample: Sample) -> str:
        """Return the hash that ``load`` computes, without decoding any file.

        Raises:
            FileAccessError: a file is missing or unreadable.
        """

    def load(self, sample: Sample) -> Loaded:
        """Run stage 1: bytes on disk to frames."""

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Run stage 2 up to the upload: frames to pixel values in the model's dtype, text to token ids, on the CPU."""

    def tokenize(self, question: str, scene: SceneInfo) -> Prepared:
        """Run stage 2 for a further question about a scene, without pixels; ``Adapter.rebuild_inputs`` completes it."""

    def scene_info(self, features: Features) -> SceneInfo:
        """Return the info of the scene that was encoded to these features."""

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens, stripped."""


@dataclass(frozen=True, slots=True)
class FusedOutput:
    """Output of the model's own ``generate`` for one prompt."""

    token_ids: tuple[int, ...]
    """The new tokens, end token included."""
    logits: torch.Tensor | None = None
    """float32 ``[len(token_ids), V]``: the logits that each token was chosen from; None if not requested."""


class Adapter(Protocol):
    """One loaded model of one family."""

    family: str
    model: Any
    """The Hugging Face model."""
    fingerprint: str
    notes: tuple[str, ...]
    """Notes for reports: random weights, added tokens, ..."""
    unsplittable: Unavailable | None
    """Reason why the model cannot be split into stages; None if it can. The fused call works either way."""

    @property
    def takes(self) -> Takes:
        """Medium that the model takes. A model of video or images also takes the frames of events."""

    @property
    def preprocessor(self) -> Preprocessor:
        """Stages 1 and 2; another process may run them as well."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def language(self) -> LanguageModel:
        """The text side, for an engine to run.

        Raises:
            CutError: the model cannot be split.
        """

    def load(self, sample: Sample) -> Loaded:
        """Run stage 1: bytes on disk to frames."""

    def media_sha256(self, sample: Sample) -> str:
        """See ``Preprocessor.media_sha256``."""

    def preprocess(self, loaded: Loaded, question: str | None = None) -> Prepared:
        """Run stage 2: frames to pixel values on the device, text to token ids."""

    def upload(self, prepared: Prepared) -> Prepared:
        """Copy the result of ``preprocessor.preprocess`` to the device; the copy from pinned memory is asynchronous."""

    def rebuild_inputs(self, prepared: Prepared, features: Features) -> Prepared:
        """Complete and upload the result of ``preprocessor.tokenize``: sizes and grids come from the features."""

    def encode(self, prepared: Prepared) -> Features:
        """Run stage 3: all vision-side compute of every frame."""

    def encode_batch(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Run stage 3 of several samples, in one batch if the family's tower supports batches."""

    def prompt(self, prepared: Prepared, features: Features, *, digest: bool) -> Prompt:
        """Build the prompt: text embeddings with the features in place. Never runs the tower.

        Raises:
            FeaturesError: the features are of another model.
        """

    def prompt_batch(self, items: Sequence[tuple[Prepared, Features]]) -> Prompt:
        """Build the prompts of a batch, padded on the left to one length."""

    def tokenize(self, question: str, features: Features) -> Prepared:
        """Run stage 2 for a further question about encoded features."""

    def decode_text(self, token_ids: tuple[int, ...]) -> str:
        """Return the text of tokens, without special tokens."""

    def fused_generate(
        self,
        prepared: Sequence[Prepared],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        logits: bool = False,
        forced: Sequence[int] | None = None,
    ) -> list[FusedOutput]:
        """Call the model's own ``generate`` from pixels, for one prompt or a padded batch.

        Args:
            prepared: the prompts.
            max_new_tokens: tokens at most.
            sampling: how tokens are chosen.
            logits: return the logits of each token.
            forced: tokens that every row writes, whatever its logits are; as many as ``max_new_tokens``.
        """

    def expected_provenance(self) -> Provenance:
        """Return the provenance that features of this model must have."""

    def feature_positions(self, prepared: Prepared) -> slice | None:
        """Return the prompt positions that hold the features as ``encode`` returns them; None if the family moves them.

        Many families of Hugging Face sort features, or put other rows between them, after ``encode``.
        """

    def expected_work(self, prepared: Prepared, prompt: Prompt, rows: int) -> ExpectedWork:
        """Return the operations that each stage must execute.

        Args:
            prepared: one sample.
            prompt: its prompt.
            rows: rows that the engine computes for the prompt, padding included.
        """

    def vision_modules(self) -> Mapping[str, nn.Module]:
        """Return the vision modules by name: towers, then projectors.

        Raises:
            CutError: no tower is found.
        """

    def vision_calls(self, prepared: Prepared) -> Mapping[str, int]:
        """Return how often ``encode`` calls each vision module for this prompt."""


class FamilyLoader(Protocol):
    """A module that builds adapters and preprocessors: ``eventgpt_loading`` or ``hf_loading``."""

    def load_folder(
        self, folder: Path, device: torch.device, dtype: torch.dtype, notes: tuple[str, ...] = ()
    ) -> Adapter:
        """Load a checkpoint.

        Raises:
            CheckpointError: the checkpoint is incomplete or damaged.
        """

    def load_random(self, shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Adapter:
        """Make a model of a known size with random weights.

        Raises:
            DeviceError: the device has too little memory.
        """

    def preprocessor_of_folder(self, folder: Path, dtype: torch.dtype) -> Preprocessor:
        """Open the preprocessor of a checkpoint, without reading its weights.

        Raises:
            CheckpointError: config, tokenizer or pixel settings are missing or damaged.
        """

    def random_preprocessor(self, shape: str, dtype: torch.dtype) -> Preprocessor:
        """Return the preprocessor of a model with random weights."""
