"""Features: the output of Stage 3 and input of Stage 4, with their provenance.

A ``Features`` value holds more than the tensor. Stage 4 refuses features of another model, dtype or width, and the
error names both sides. A file of features cannot be mistaken for another scene's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from unfuse.atomic_files import complete_file
from unfuse.checksum import digest_tensors
from unfuse.errors import FeaturesError, FileAccessError, NonFiniteError
from unfuse.finite import FiniteFlag, non_finite_counts
from unfuse.stages import Provenance

if TYPE_CHECKING:
    import torch

_FORMAT: Final = "unfuse.features/3"


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The rows that replace the media placeholder, and their provenance."""

    tensor: torch.Tensor
    """``[N, H]``: one row a placeholder position, in prompt order within each modality."""
    provenance: Provenance
    layers: tuple[torch.Tensor, ...] = ()
    """``[N, H]`` each: rows that a family adds to the first layers of its decoder at the same positions (DeepStack)."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """The adapter's own, plain JSON: how the rows were grouped, and sizes that a further question's prompt needs."""
    _digests: dict[tuple[int, ...], str] = field(default_factory=dict, repr=False)
    _flags: dict[tuple[int, ...], FiniteFlag] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        found = (str(self.tensor.dtype).removeprefix("torch."), tuple(self.tensor.shape))
        if found != (self.provenance.dtype, self.provenance.shape):
            raise FeaturesError(
                "features", found=f"{found[0]} {list(found[1])}", expected=f"{self.provenance.dtype} "
                f"{list(self.provenance.shape)} as their provenance says",
            )  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 over the values' checksum; computed again after an in-place change."""
        versions = self._versions()
        if versions not in self._digests:
            self._digests.clear()
            self._digests[versions] = digest_tensors(self._named())
        return self._digests[versions]

    def known_as(self, digest: str) -> Features:
        """Return these features with a digest that the caller guarantees; in-place changes are still detected.

        Computing a digest makes the host wait for the device. Features of equal provenance are interchangeable, so a
        caller with the features of one pass may derive their digest from the provenance.
        """
        named = Features(self.tensor, self.provenance, self.layers, self.layout, _flags=self._flags)
        named._digests[named._versions()] = digest
        return named

    def watch_finite(self) -> FiniteFlag:
        """Return whether all values are finite. The host waits for the device when it reads the flag, not before."""
        tensors = [tensor for _, tensor in self._named()]
        if any(tensor.is_inference() for tensor in tensors):
            return FiniteFlag(tensors)  # torch counts no versions of these, so a change would not be seen
        versions = self._versions()
        if versions not in self._flags:
            self._flags.clear()
            self._flags[versions] = FiniteFlag(tensors)
        return self._flags[versions]

    def require_finite(self) -> None:
        """Refuse NaN and infinity.

        Raises:
            NonFiniteError: a value is not finite.
        """
        if not self.watch_finite():
            raise NonFiniteError("encode", "features", found=non_finite_counts([tensor for _, tensor in self._named()]))

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> Features:
        """Return these features on another device.

        Args:
            device: device to copy to.
            non_blocking: as in torch: a copy from pinned memory does not block the host.
        """
        layers = tuple(layer.to(device, non_blocking=non_blocking) for layer in self.layers)
        return Features(self.tensor.to(device, non_blocking=non_blocking), self.provenance, layers, self.layout)

    def clone(self) -> Features:
        """Return a copy that shares no memory with these features."""
        layers = tuple(layer.detach().clone() for layer in self.layers)
        return Features(self.tensor.detach().clone(), self.provenance, layers, self.layout)

    def _versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for _, tensor in self._named())

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "features", self.tensor
        for index, layer in enumerate(self.layers):
            yield f"layer.{index}", layer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, completely or not at all.

        Raises:
            FileAccessError: the file cannot be written.
            NonFiniteError: a value is not finite.
        """
        data = pack(self)
        try:
            with complete_file(Path(path), durable=True) as partial:
                partial.write_bytes(data)
        except OSError as error:
            raise FileAccessError(str(path), found=error.strerror, expected="a writable path") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Self:
        """Read a file that ``save`` wrote.

        Raises:
            FileAccessError: no such file.
            FeaturesError: not a features file, or damaged.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            found = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise FileAccessError(str(path), found=found, expected="a file that Features.save wrote") from None
        features, _ = unpack(data, str(path))
        return cls(
            features.tensor.to(device),
            features.provenance,
            tuple(layer.to(device) for layer in features.layers),
            features.layout,
        )


def pack(features: Features, notes: Mapping[str, str] | None = None) -> bytes:
    """One safetensors file, in memory.

    Args:
        features: on any device.
        notes: kept beside them, under the same checksum.

    Raises:
        NonFiniteError: a value is not finite.
    """
    from safetensors.torch import save

    features.require_finite()

    texts = {
        **(notes or {}),
        "format": _FORMAT,
        "provenance": json.dumps(asdict(features.provenance)),
        "layout": json.dumps(dict(features.layout)),
    }
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in features._named()}
    return save(tensors, {**texts, "digest": _file_digest(features, texts)})


def unpack(data: bytes, name: str) -> tuple[Features, Mapping[str, str]]:
    """Return features on the CPU and the notes beside them from the output of ``pack``.

    Nothing refers to ``data`` afterwards.

    Args:
        data: the whole file.
        name: for the message.

    Raises:
        FeaturesError: not a features file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        texts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        if texts.get("format") != _FORMAT:
            raise FeaturesError(name, found=f"format {texts.get('format')}", expected=_FORMAT)
        digest = texts.pop("digest")
        layers = tuple(tensors[f"layer.{i}"] for i in range(len(tensors) - 1))
        fields, layout = json.loads(texts["provenance"]), json.loads(texts["layout"])
        provenance = Provenance(**{**fields, "shape": tuple(fields["shape"])})
        features = Features(tensors["features"], provenance, layers, dict(layout))
    except (SafetensorError, KeyError, TypeError, ValueError, AssertionError, RecursionError) as error:
        raise FeaturesError(name, found=f"damaged ({error})", expected="a file that Features.save wrote") from None
    if _file_digest(features, texts) != digest:
        raise FeaturesError(name, found="values that differ from their digest", expected="undamaged values")
    return features, texts


def _file_digest(features: Features, texts: Mapping[str, str]) -> str:
    # The texts too: a flipped bit in the layout would put rows in other places without a word.
    return digest_tensors(features._named(), *(f"{name}={text}" for name, text in sorted(texts.items())))


def require_fit(features: Features, expected: Provenance) -> None:
    """Refuses features that another model, dtype or width made.

    Args:
        features: given to Stage 4.
        expected: of the model that is to take them; its media and leading sizes are not compared.

    Raises:
        FeaturesError: says both sides.
    """
    given = features.provenance
    sides = (
        ("family", given.family, expected.family),
        ("dtype", given.dtype, expected.dtype),
        ("width", given.shape[-1], expected.shape[-1]),
        ("model", given.model_fingerprint[:16], expected.model_fingerprint[:16]),
    )
    for what, theirs, ours in sides:
        if theirs != ours:
            raise FeaturesError(
                f"features of another {what}",
                found=theirs,
                expected=f"{ours}, this model's",
                fix="encode the sample again with this model",
            )
