"""The key of a store entry: a hash of everything that decides features.

Model (config, tensors and pixel settings, by its fingerprint), media (bytes, window, choice of frames, by their hash),
dtype, and software: another decoder or pooling gives other features of the same file, so features of other code are
never found. Device, engine and batch do not enter: they change the last bits only.
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
"""Other packages with code that makes frames, pixels and features."""


def has_hashes(model_fingerprint: str, media_sha256: str) -> bool:
    """Return whether both are hashes: features of pixels without media have none, and no key."""
    return bool(_SHA256.fullmatch(model_fingerprint) and _SHA256.fullmatch(media_sha256))


def entry_key(model_fingerprint: str, media_sha256: str, dtype: str, made_by: str) -> str:
    """Return the entry's name: 64 hexadecimal digits, for any arguments.

    Args:
        model_fingerprint: of the model that encodes.
        media_sha256: of the media that it is shown.
        dtype: of the features.
        made_by: result of ``software``.
    """
    return hashlib.sha256(json.dumps([_SCHEME, model_fingerprint, media_sha256, dtype, made_by]).encode()).hexdigest()


@cache
def software() -> str:
    """Return a hash of this package's source, with the versions of the packages that it decodes and computes with."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return ", ".join([f"unfuse {digest.hexdigest()[:16]}", *(f"{name} {_version(name)}" for name in _PACKAGES)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
