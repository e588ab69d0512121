"""Fingerprint of a model: its config, a checksum of every tensor, and the settings of its pixels.

A fingerprint of the config alone would be equal for two fine-tunes. Without the pixel settings it would be equal for
two checkpoints that resize a scene differently. Reading every tensor of a large model on a CPU takes seconds, so the
digest of the tensors is cached on disk by the identity of the files (path, size, time, inode) and the dtype.
"""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from unfuse.checksum import digest_tensors
from unfuse.user_cache import cached_text

_SCHEME: Final = "2"
"""Version of the digest; increased when the digest of equal tensors changes."""
_VOLATILE: Final = ("_name_or_path", "transformers_version", "architectures", "dtype")


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 of the config and of every parameter and persistent buffer, in their present dtype."""
    return _joined(model, _tensors(model))


def cached_model_fingerprint(model: PreTrainedModel, folder: str | Path, dtype: torch.dtype) -> str:
    """Return the fingerprint of a model loaded from ``folder``; the digest of unchanged files comes from the cache."""
    key = hashlib.sha256(_identity(Path(folder), dtype).encode()).hexdigest()
    tensors = cached_text(f"fingerprints/{key}", lambda: _tensors(model), lambda found: len(found) == 64)
    return _joined(model, tensors)


def with_pixels(fingerprint: str, processor: Any, *, video: bool = False) -> str:
    """Return the fingerprint of a model and its pixel settings. Models with equal fingerprints compute equal features.

    Args:
        fingerprint: of config and tensors.
        processor: an image processor, or a family's whole processor; its tokenizer does not count.
        video: whether frames are passed as one video.
    """
    settings = json.dumps(_strip(processor.to_dict()), sort_keys=True, default=_plain)
    # The backends of an image processor, Pillow and torchvision, have the same settings and differ in their classes.
    parts = (processor, *(getattr(processor, name, None) for name in ("image_processor", "video_processor")))
    kinds = " ".join(type(part).__name__ for part in parts)
    return hashlib.sha256(f"{fingerprint}\n{kinds} {video}\n{settings}".encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Convert a value that JSON does not support. The result contains no address: addresses differ by process."""
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
