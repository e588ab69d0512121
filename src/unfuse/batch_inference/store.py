"""The feature store in a run: workers look features up, and a thread beside the device's writes new ones."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from unfuse.batch_inference.scenes import reason_of
from unfuse.feature_store import FeatureStore
from unfuse.features import Features

_MAX_WAITING: Final = 16
"""Features that may wait on the device to be written before encoding waits for the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """Location and size of a store, as sent to other processes."""

    path: Path
    max_bytes: int

    def open(self) -> FeatureStore:
        """Open the store, once a process."""
        return _open(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreLookup:
    """Finds the features of one model; a ``FeatureLookup`` that pickles."""

    store: StoreConfig
    model_fingerprint: str
    dtype: str

    def __call__(self, media_sha256: str) -> Features | None:
        """Return stored features on the CPU."""
        return self.store.open().get(self.model_fingerprint, media_sha256, self.dtype)


@lru_cache(maxsize=4)
def _open(config: StoreConfig) -> FeatureStore:
    return FeatureStore(config.path, config.max_bytes)


class CacheWriter:
    """Writes features to the store from its own thread, so that the device's thread waits for no copy and no disk."""

    def __init__(self, store: FeatureStore):
        self._store = store
        self._trouble: str | None = None
        self.busy_s = 0.0
        """Seconds spent writing so far."""
        self._waiting: queue.Queue[Features | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __call__(self, features: Features) -> None:
        """Queue the features of one scene."""
        self._waiting.put(features)

    def close(self) -> None:
        """Return when all features are written."""
        self._waiting.put(None)
        self._thread.join()

    @property
    def trouble(self) -> str | None:
        """Reason why features were last not written."""
        return self._trouble or self._store.trouble

    def _work(self) -> None:
        while (features := self._waiting.get()) is not None:
            start = time.perf_counter()
            try:
                self._store.put(features)
            except Exception as error:  # noqa: BLE001 - the scene is encoded again later; encoding must not wait for ever
                self._trouble = reason_of(error)
            self.busy_s += time.perf_counter() - start
