"""The feature store: encoded scenes by model, media, dtype and software.

A hit costs hashing the scene's files and reading its entry. An entry counts only if its checksum fits and its
provenance is the requested one; any other is removed, counted, and encoded again. Disk errors do not reach the caller:
they are counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from unfuse.errors import FeaturesError, FileAccessError, InputError
from unfuse.feature_store.folder import DEFAULT_MAX_BYTES, StoreEntry, StoreFolder, StoreInfo, read_entry
from unfuse.feature_store.key import entry_key, has_hashes, software
from unfuse.features import Features, pack, unpack
from unfuse.stages import Provenance

if TYPE_CHECKING:
    from unfuse.samples import Sample
    from unfuse.staged_model import StagedModel
    from unfuse.stages import Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreCounts:
    """Counts of one ``FeatureStore`` since it was opened."""

    hits: int = 0
    misses: int = 0
    """Damaged entries among them."""
    stored: int = 0
    unstored: int = 0
    """Calls of ``put`` that stored nothing: full or read-only disk, lock held elsewhere, no media hash."""
    evicted: int = 0
    """Entries that this store removed to stay below its maximum size."""
    damaged: int = 0
    """Entries that were broken, or did not belong to their name."""


class FeatureStore:
    """Encoded scenes in a folder; any number of threads and processes may share it."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None = None, *, make: bool = True):
        """Open a store.

        Args:
            folder: created if it is missing, unless ``make`` is false.
            max_bytes: of all entries together; the least recently used go first. Default: 50 GiB.
            make: whether an empty or missing folder becomes a store.

        Raises:
            FileAccessError: no folder, a file in its place, or it cannot be made.
            InputError: the folder holds something else, or the bound is below 1.
        """
        if max_bytes is not None and max_bytes < 1:
            raise InputError("bound of the store", found=f"{max_bytes} bytes", expected="at least 1")
        self.max_bytes = max_bytes or DEFAULT_MAX_BYTES
        self._folder = StoreFolder(Path(folder), self.max_bytes, make=make)
        self._counts: Counter[str] = Counter()
        self._lock = Lock()
        self.trouble: str | None = None
        """Reason of the last ``put`` that stored nothing."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def counts(self) -> StoreCounts:
        """The present counts."""
        with self._lock:
            return StoreCounts(**self._counts)

    def get(self, model_fingerprint: str, media_sha256: str, dtype: str) -> Features | None:
        """Return features encoded before, on the CPU.

        Args:
            model_fingerprint: of the model that will take them.
            media_sha256: of the media; ``StagedModel.media_sha256`` has it without decoding.
            dtype: of the features, as ``bfloat16``.

        Returns:
            None on a miss. A damaged or foreign entry is removed, and is a miss.
        """
        features = None
        if has_hashes(model_fingerprint, media_sha256):
            key = entry_key(model_fingerprint, media_sha256, dtype, software())
            if (entry := self._folder.read(key)) is not None:
                features = self._checked(entry, key)
        self._count("misses" if features is None else "hits")
        return features

    def put(self, features: Features) -> None:
        """Store features, whole or not at all. Disk errors are not raised; ``counts`` has their number."""
        origin = features.provenance
        if not has_hashes(origin.model_fingerprint, origin.media_sha256):
            self._not_stored("features without the hashes of a model and of media")
            return
        key = _key(origin, software())
        try:
            evicted = self._folder.write(key, pack(features, {"made_by": software()}))
        except OSError as error:
            self._not_stored(f"{self.path}: {error.strerror or error}")
            return
        self._count("stored")
        self._count("evicted", evicted)

    def forget(self, origin: Provenance) -> None:
        """Remove the entry of features of this provenance, if there is one."""
        key = _key(origin, software())
        if (entry := self._folder.read(key)) is not None:
            self._folder.remove(key, entry.identity)

    def find(self, model: StagedModel, media_sha256: str) -> Features | None:
        """Return features for a model, on its device, as ``get`` does."""
        features = self.get(model.fingerprint, media_sha256, str(model.dtype).removeprefix("torch."))
        return None if features is None else features.to(model.device)

    def features(self, model: StagedModel, source: Sample | Prepared) -> tuple[Features, bool]:
        """Return the features of a scene, encoded on a miss, and whether they were a hit.

        On a hit the sample is neither decoded nor preprocessed.

        Raises:
            UnfuseError: as ``StagedModel.encode`` does.
        """
        from unfuse.stages import Prepared

        media = source.media_sha256 if isinstance(source, Prepared) else model.media_sha256(source)
        if (cached := self.find(model, media)) is not None:
            return cached, True
        features = model.encode(source)
        self.put(features)
        return features, False

    def entry_path(self, origin: Provenance) -> Path:
        """Return the path of the file of features of this provenance, even if the file does not exist."""
        return self._folder.entry_path(_key(origin, software()))

    def info(self) -> StoreInfo:
        """Count entries and bytes."""
        return self._folder.info()

    def check(self) -> Iterator[tuple[Path, str | None]]:
        """Read every entry of any model; yield its file and its fault, None for a sound one."""
        for path in self._folder.entries():
            if (entry := read_entry(path)) is not None:
                yield path, _unpack_entry(entry, path.stem)[1]

    def clear(self) -> StoreInfo:
        """Remove every entry; return the information about the store before.

        Raises:
            FileAccessError: something cannot be removed.
        """
        try:
            return self._folder.clear()
        except OSError as error:
            raise FileAccessError(str(self.path), found=error.strerror, expected="entries to remove") from None

    def _checked(self, entry: StoreEntry, key: str) -> Features | None:
        features, fault = _unpack_entry(entry, key)
        if fault is None:
            self._folder.touch(key)
            return features
        self._count("damaged")
        self._folder.remove(key, entry.identity)
        return None

    def _not_stored(self, reason: str) -> None:
        with self._lock:
            self.trouble = reason
        self._count("unstored")

    def _count(self, name: str, more: int = 1) -> None:
        with self._lock:
            self._counts[name] += more


def _key(origin: Provenance, made_by: str) -> str:
    return entry_key(origin.model_fingerprint, origin.media_sha256, origin.dtype, made_by)


def _unpack_entry(entry: StoreEntry, key: str) -> tuple[Features | None, str | None]:
    """Return the features of an entry, or its fault."""
    if entry.data is None:
        return None, "no readable file"
    try:
        features, notes = unpack(entry.data, key[:16])
    except FeaturesError as error:
        return None, str(error)
    # The name is a hash of everything that decides the values.
    if _key(features.provenance, notes.get("made_by", "")) != key:
        return None, "features of another model, scene, dtype or software than its name says"
    return features, None
