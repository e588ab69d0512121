"""The feature store in a run: workers look scenes up, and a thread beside the device's puts new ones away."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from unfuse.feature_store import FeatureStore
from unfuse.features import Features
from unfuse.throughput.scenes import reason_of

_MOST_WAITING: Final = 16
"""Features that may wait to be put away, on the device, before encoding waits for the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StorePlace:
    """A store, as another process can be told of it."""

    path: Path
    max_bytes: int

    def open(self) -> FeatureStore:
        """The store; once a process."""
        return _opened(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What one model's features are found under."""

    place: StorePlace
    model_fingerprint: str
    dtype: str

    def __call__(self, media_sha256: str) -> Features | None:
        """Features encoded before, on the CPU."""
        return self.place.open().get(self.model_fingerprint, media_sha256, self.dtype)


@lru_cache(maxsize=4)
def _opened(place: StorePlace) -> FeatureStore:
    return FeatureStore(place.path, place.max_bytes)


class Keeper:
    """Puts features away: the thread that feeds the device waits neither for the copy nor for the disk."""

    def __init__(self, store: FeatureStore):
        self._store = store
        self._trouble: str | None = None
        self.busy_s = 0.0
        """Seconds spent putting away, so far."""
        self._waiting: queue.Queue[Features | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __call__(self, features: Features) -> None:
        """Takes one scene's features."""
        self._waiting.put(features)

    def close(self) -> None:
        """Returns when all are put away."""
        self._waiting.put(None)
        self._thread.join()

    @property
    def trouble(self) -> str | None:
        """Why something was last not put away."""
        return self._trouble or self._store.trouble

    def _work(self) -> None:
        while (features := self._waiting.get()) is not None:
            begun = time.perf_counter()
            try:
                self._store.put(features)
            except Exception as error:  # noqa: BLE001 - a scene is encoded again; whoever encodes must not wait for ever
                self._trouble = reason_of(error)
            self.busy_s += time.perf_counter() - begun
