"""Which model this is: its config, a checksum of every tensor, and how it is given its pixels.

A fingerprint of the config alone would let two fine-tunes pass for one another, and one without the pixels' settings
two checkpoints that see a scene at different sizes. Reading every tensor of a large model on a CPU takes seconds, so
the tensors' part is kept on disk for untouched files, under their identity (path, size, time, inode) and dtype.
"""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from unfuse.cache import remembered
from unfuse.checksum import digest_tensors

_SCHEME: Final = "2"
"""Raised whenever the digest of the same tensors changes."""
_VOLATILE: Final = ("_name_or_path", "transformers_version", "architectures", "dtype")


def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the config and every parameter and persistent buffer, in the dtype they have now."""
    return _joined(model, _tensors(model))


def cached_model_fingerprint(model: PreTrainedModel, folder: str | Path, dtype: torch.dtype) -> str:
    """The same for a model just loaded from ``folder``; its tensors are read once while the files stay the same."""
    key = hashlib.sha256(_identity(Path(folder), dtype).encode()).hexdigest()
    tensors = remembered(f"fingerprints/{key}", lambda: _tensors(model), lambda found: len(found) == 64)
    return _joined(model, tensors)


def with_pixels(fingerprint: str, processor: Any, *, video: bool = False) -> str:
    """A model's fingerprint together with what makes its pixels: two that are equal give the same features.

    Args:
        fingerprint: of config and tensors.
        processor: an image processor, or a family's whole processor, whose tokenizer does not count.
        video: whether frames are shown as one video.
    """
    settings = json.dumps(_strip(processor.to_dict()), sort_keys=True, default=_plain)
    # Settings name a family; its backends, Pillow's and torchvision's, differ in their classes only.
    parts = (processor, *(getattr(processor, name, None) for name in ("image_processor", "video_processor")))
    kinds = " ".join(type(part).__name__ for part in parts)
    return hashlib.sha256(f"{fingerprint}\n{kinds} {video}\n{settings}".encode()).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON cannot hold; never an address, which would be another one in the next process."""
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return str(value) if isinstance(value, torch.dtype) else type(value).__qualname__


def _tensors(model: PreTrainedModel) -> str:
    return digest_tensors(sorted(model.state_dict().items()))


def _joined(model: PreTrainedModel, tensors: str) -> str:
    return hashlib.sha256(f"{_config_text(model.config)}\n{tensors}".encode()).hexdigest()


def _config_text(config: Any) -> str:
    return json.dumps(_strip(config.to_dict()), sort_keys=True, default=str)


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _strip(v) for k, v in value.items() if k not in _VOLATILE}
    return value


def _identity(folder: Path, dtype: torch.dtype) -> str:
    root = folder.resolve()
    files = [root / "config.json", *sorted(root.glob("*.safetensors")), *sorted(root.glob("*.bin"))]
    parts = [f"{f} {(s := f.stat()).st_size} {s.st_mtime_ns} {s.st_ino}" for f in files]
    return "\n".join([_SCHEME, str(dtype), torch.__version__, *parts])
