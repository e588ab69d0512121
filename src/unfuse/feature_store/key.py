"""What decides features, as one name.

Model (config, tensors and pixel settings, in its fingerprint), media (bytes, window, choice of frames, in their hash),
dtype, and the software between the two: a mended decoder or pooling gives other features of the same file, so features
made by other code are never found. What does not enter is what changes the last bits only: device, engine, batch.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_SCHEME: Final = "unfuse.store/1"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PACKAGES: Final = (
    "torch", "transformers", "pillow", "av", "torchvision", "h5py", "hdf5plugin", "evt3", "aedat",
)  # fmt: skip
"""Beside this one, whose code makes frames, pixels and features."""


def is_known(model_fingerprint: str, media_sha256: str) -> bool:
    """Whether both are hashes: features of pixels from nowhere have no media, and cannot be told apart."""
    return bool(_SHA256.fullmatch(model_fingerprint) and _SHA256.fullmatch(media_sha256))


def entry_key(model_fingerprint: str, media_sha256: str, dtype: str, made_by: str) -> str:
    """The entry's name: 64 hexadecimal digits, whatever is given.

    Args:
        model_fingerprint: of the model that encodes.
        media_sha256: of what it is shown.
        dtype: of the features.
        made_by: as ``software`` has it.
    """
    return hashlib.sha256(json.dumps([_SCHEME, model_fingerprint, media_sha256, dtype, made_by]).encode()).hexdigest()


@cache
def software() -> str:
    """This package's own source, by hash, and the packages that it decodes and computes with, by version."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return ", ".join([f"unfuse {digest.hexdigest()[:16]}", *(f"{name} {_version(name)}" for name in _PACKAGES)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
