"""The feature store: encoded scenes by what they are of.

A scene whose model, media, dtype and software have been seen costs hashing its files and reading its entry. What is
read is believed only if all of it is as it was written and its provenance is what was asked for; anything else is
removed, counted, and encoded again. Nothing that goes wrong with the disk reaches the caller: it is counted.
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
from unfuse.feature_store.folder import DEFAULT_MAX_BYTES, Found, StoreFolder, StoreInfo, read_entry
from unfuse.feature_store.key import entry_key, is_known, software
from unfuse.features import Features, pack, unpack
from unfuse.stages import Provenance

if TYPE_CHECKING:
    from unfuse.samples import Sample
    from unfuse.staged_model import StagedModel
    from unfuse.stages import Prepared


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreCounts:
    """What one ``FeatureStore`` has done since it was made."""

    hits: int = 0
    misses: int = 0
    """Damaged entries among them."""
    stored: int = 0
    unstored: int = 0
    """``put`` that left nothing: a full or read-only disk, a lock that was not had, features without a media hash."""
    evicted: int = 0
    """Entries that this one removed to stay within the bound."""
    damaged: int = 0
    """Entries found that were broken, or not what their name says."""


class FeatureStore:
    """Encoded scenes in a folder; any number of threads and processes may share it."""

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int | None = None, *, make: bool = True):
        """Opens a store.

        Args:
            folder: made if it is not there, unless ``make`` is false.
            max_bytes: of all entries together; those not used for longest go first. Default: 50 GiB.
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
        """Why something was last not stored."""

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    @property
    def counts(self) -> StoreCounts:
        """As they are now."""
        with self._lock:
            return StoreCounts(**self._counts)

    def get(self, model_fingerprint: str, media_sha256: str, dtype: str) -> Features | None:
        """Features encoded before, on the CPU.

        Args:
            model_fingerprint: of the model that is to take them.
            media_sha256: of what it would be shown; ``StagedModel.media_sha256`` has it without decoding.
            dtype: of the features, as ``bfloat16``.

        Returns:
            None where they must be encoded. A damaged or foreign entry is removed, and is a miss.
        """
        features = None
        if is_known(model_fingerprint, media_sha256):
            key = entry_key(model_fingerprint, media_sha256, dtype, software())
            if (found := self._folder.read(key)) is not None:
                features = self._believed(found, key)
        self._count("misses" if features is None else "hits")
        return features

    def put(self, features: Features) -> None:
        """Keeps features, whole or not at all. It does not raise for what the disk does; ``counts`` say it."""
        origin = features.provenance
        if not is_known(origin.model_fingerprint, origin.media_sha256):
            self._left("features without the hashes of a model and of media")
            return
        key = _key(origin, software())
        try:
            evicted = self._folder.write(key, pack(features, {"made_by": software()}))
        except OSError as error:
            self._left(f"{self.path}: {error.strerror or error}")
            return
        self._count("stored")
        self._count("evicted", evicted)

    def forget(self, origin: Provenance) -> None:
        """Removes the entry of features of this provenance, where there is one."""
        key = _key(origin, software())
        if (found := self._folder.read(key)) is not None:
            self._folder.remove(key, found.identity)

    def find(self, model: StagedModel, media_sha256: str) -> Features | None:
        """``get`` for a model, on its device."""
        features = self.get(model.fingerprint, media_sha256, str(model.dtype).removeprefix("torch."))
        return None if features is None else features.to(model.device)

    def features(self, model: StagedModel, source: Sample | Prepared) -> tuple[Features, bool]:
        """Features of a scene, encoded only if they must be, and whether they were found.

        A sample that is found is neither decoded nor preprocessed.

        Raises:
            UnfuseError: as ``StagedModel.encode`` does.
        """
        from unfuse.stages import Prepared

        media = source.media_sha256 if isinstance(source, Prepared) else model.media_sha256(source)
        if (kept := self.find(model, media)) is not None:
            return kept, True
        features = model.encode(source)
        self.put(features)
        return features, False

    def place(self, origin: Provenance) -> Path:
        """The file that features of this provenance have or would have."""
        return self._folder.place(_key(origin, software()))

    def info(self) -> StoreInfo:
        """What there is, counted now."""
        return self._folder.info()

    def check(self) -> Iterator[tuple[Path, str | None]]:
        """Reads every entry, of whatever model; gives its file and what is wrong with it, None if nothing is."""
        for path in self._folder.entries():
            if (found := read_entry(path)) is not None:
                yield path, _fault(found, path.stem)[1]

    def clear(self) -> StoreInfo:
        """Removes every entry; returns what was there.

        Raises:
            FileAccessError: something cannot be removed.
        """
        try:
            return self._folder.clear()
        except OSError as error:
            raise FileAccessError(str(self.path), found=error.strerror, expected="entries to remove") from None

    def _believed(self, found: Found, key: str) -> Features | None:
        features, fault = _fault(found, key)
        if fault is None:
            self._folder.touch(key)
            return features
        self._count("damaged")
        self._folder.remove(key, found.identity)
        return None

    def _left(self, why: str) -> None:
        with self._lock:
            self.trouble = why
        self._count("unstored")

    def _count(self, name: str, more: int = 1) -> None:
        with self._lock:
            self._counts[name] += more


def _key(origin: Provenance, made_by: str) -> str:
    return entry_key(origin.model_fingerprint, origin.media_sha256, origin.dtype, made_by)


def _fault(found: Found, key: str) -> tuple[Features | None, str | None]:
    """The features of an entry, or what is wrong with it."""
    if found.data is None:
        return None, "no readable file"
    try:
        features, notes = unpack(found.data, key[:16])
    except FeaturesError as error:
        return None, str(error)
    # The name says what was asked for, and covers everything that decides the values.
    if _key(features.provenance, notes.get("made_by", "")) != key:
        return None, "features of another model, scene, dtype or software than its name says"
    return features, None
