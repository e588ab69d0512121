"""Which model this is: its config and a checksum of every tensor.

A fingerprint of the config alone would let two fine-tunes pass for one another. Reading every tensor of a large model
on a CPU takes seconds, so a fingerprint of untouched files is kept on disk under their identity (path, size, time,
inode).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import platformdirs
import torch
from transformers import PreTrainedModel

from unfuse.checksum import digest_tensors

_VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")


def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the config and every parameter and persistent buffer, in the dtype they have now."""
    return digest_tensors(sorted(model.state_dict().items()), _config_text(model.config))


def cached_model_fingerprint(model: PreTrainedModel, folder: str | Path, dtype: torch.dtype) -> str:
    """The same for a model just loaded from ``folder``, taken from disk where its files are unchanged."""
    key = hashlib.sha256(_identity(Path(folder), dtype).encode()).hexdigest()
    entry = Path(platformdirs.user_cache_dir("unfuse")) / "fingerprints" / key
    try:
        if len(known := entry.read_text()) == 64:
            return known
    except OSError:
        pass  # not there yet, or no readable cache: computed below
    fingerprint = model_fingerprint(model)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = entry.with_suffix(f".{torch.initial_seed() & 0xFFFF:x}.partial")
        partial.write_text(fingerprint)
        partial.replace(entry)
    except OSError:
        pass  # a read-only home costs the seconds again, nothing else
    return fingerprint


def _config_text(config: Any) -> str:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in _VOLATILE}
        return value

    return json.dumps(strip(config.to_dict()), sort_keys=True, default=str)


def _identity(folder: Path, dtype: torch.dtype) -> str:
    files = sorted(folder.resolve().glob("*.safetensors")) + sorted(folder.resolve().glob("*.bin"))
    config = folder.resolve() / "config.json"
    parts = [f"{f} {(s := f.stat()).st_size} {s.st_mtime_ns} {s.st_ino}" for f in [config, *files]]
    return "\n".join([str(dtype), torch.__version__, *parts])
