"""Fingerprint of a model: its configs, a checksum of every tensor, and the settings of its pixels.

A fingerprint of the config alone would be equal for two fine-tunes. Without the pixel settings it would be equal for
two checkpoints that resize a scene differently. The tensors are summed whenever a model is loaded: size, time and inode
of a file can all stay the same while its bytes change. On a CPU the sum reads 9 GB/s, less than loading costs.
"""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PretrainedConfig, PreTrainedModel

from unfuse.checksum import digest_tensors
from unfuse.errors import FileAccessError

_SETTINGS: Final = frozenset({".json", ".jinja", ".jinja2", ".model", ".tiktoken", ".txt"})
"""Suffixes of a checkpoint's files that are neither weights nor documents."""
_VOLATILE: Final = ("_name_or_path", "transformers_version", "architectures", "dtype")


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 of all configs, and of every parameter and persistent buffer, in their present dtype."""
    tensors = digest_tensors(sorted(model.state_dict().items()))
    return hashlib.sha256(f"{_config_text(model)}\n{tensors}".encode()).hexdigest()


def settings_sha256(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's files that decide answers beside the weights, by name and bytes.

    These are the configs, the tokenizer, the chat templates and the generation settings. The index of sharded weights
    does not count: the fingerprint has every tensor.

    Raises:
        FileAccessError: a file cannot be read.
    """
    digest = hashlib.sha256()
    found = (path for pattern in ("*", "*chat_templates/*") for path in folder.glob(pattern))
    for path in sorted(path for path in found if path.suffix in _SETTINGS and not path.name.endswith(".index.json")):
        try:
            data = path.read_bytes()
        except OSError as error:
            raise FileAccessError(str(path), found=error.strerror, expected="a readable file") from None
        digest.update(f"{path.relative_to(folder)} {hashlib.sha256(data).hexdigest()}\n".encode())
    return digest.hexdigest()


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


def _config_text(model: PreTrainedModel) -> str:
    """Return the configs of a model and of its parts: a tower may have a config that the model's does not hold."""
    configs = (getattr(module, "config", None) for module in model.modules())
    plain = (_strip(config.to_dict()) for config in configs if isinstance(config, PretrainedConfig))
    return "\n".join(dict.fromkeys(json.dumps(each, sort_keys=True, default=str) for each in plain))


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _strip(v) for k, v in value.items() if k not in _VOLATILE}
    return value
