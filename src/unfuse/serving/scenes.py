"""Scenes by name: encoded once, kept while there is room, the one longest unused given up first.

Two clients that send the same recording at the same time have it encoded once. With a feature store, what is given up
here or was encoded by an earlier process is found there.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from unfuse.features import Features
from unfuse.serving.engine_loop import EngineLoop
from unfuse.serving.intake import Upload
from unfuse.serving.kinds import taken_by
from unfuse.serving.reading import Read, Readers

Source = Literal["encoded", "store"]
SCENE_STAGES: Final = ("load", "preprocess", "encode")


class Store(Protocol):
    """What is needed of a feature store."""

    def get(self, model_fingerprint: str, media_sha256: str, dtype: str) -> Features | None:
        """Features on the CPU, or None."""

    def put(self, features: Features) -> None:
        """Keeps features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """An upload that has been encoded."""

    scene_id: str
    name: str
    num_bytes: int
    created: int
    """Unix time in s."""
    media: str
    media_sha256: str
    num_events: int | None
    notes: tuple[str, ...]
    pictures: tuple[bytes, ...] = field(repr=False)
    """PNG, one a frame."""
    features: Features = field(repr=False)
    stages_ms: Mapping[str, float]
    """``load``, ``preprocess``, ``encode``: what they took when it was encoded."""
    source: Source

    @property
    def media_tokens(self) -> int:
        """Positions of a prompt that it takes."""
        return int(self.features.tensor.shape[0])

    @property
    def kept_bytes(self) -> int:
        """Memory that it holds."""
        tensors = (self.features.tensor, *self.features.layers)
        return sum(len(p) for p in self.pictures) + sum(t.numel() * t.element_size() for t in tensors)


class Scenes:
    """What is kept, and how it comes to be. For the event loop's thread."""

    def __init__(self, engine: EngineLoop, readers: Readers, *, most_bytes: int, store: Store | None = None):
        """Empty.

        Args:
            engine: encodes.
            readers: turn files into frames.
            most_bytes: memory for all scenes; the last one asked about stays whatever its size.
            store: outlives the process.
        """
        self._engine = engine
        self._takes = taken_by(engine.model.adapter)
        self._readers = readers
        self._most_bytes = most_bytes
        self._store = store
        self._kept: OrderedDict[str, Scene] = OrderedDict()
        self.kept_bytes = 0
        """Memory of all that are kept."""
        self._making: dict[str, asyncio.Task[Scene]] = {}
        # Threads of their own: a slow file must not take those that everything else shares.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="unfuse-read")

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> list[Scene]:
        """Those that are kept, the latest used last."""
        return list(self._kept.values())

    def get(self, scene_id: str) -> Scene | None:
        """A scene by name, which is then the latest used."""
        scene = self._kept.get(scene_id)
        if scene is not None:
            self._kept.move_to_end(scene_id)
        return scene

    def forget(self, scene_id: str) -> bool:
        """Gives a scene up; says whether there was one."""
        scene = self._kept.pop(scene_id, None)
        if scene is not None:
            self.kept_bytes -= scene.kept_bytes
        return scene is not None

    async def take(self, upload: Upload) -> tuple[Scene, bool]:
        """The scene of an upload, whose files are then no longer needed, and whether it was known already.

        Raises:
            UnfuseError: it cannot be read or encoded.
            EngineGoneError: the engine stopped.
        """
        if scene := self.get(upload.scene_id):
            upload.discard()
            return scene, True
        task = self._making.get(upload.scene_id)
        joined = task is not None
        if task is None:
            task = asyncio.create_task(self._make(upload))
            self._making[upload.scene_id] = task
            task.add_done_callback(lambda done: self._made(upload, done))
        else:
            upload.discard()
        # One client that leaves does not take it from the others.
        return await asyncio.shield(task), joined

    def close(self) -> None:
        """Lets go of everything."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._kept.clear()

    def _made(self, upload: Upload, task: asyncio.Task[Scene]) -> None:
        upload.discard()
        del self._making[upload.scene_id]
        if not task.cancelled() and task.exception() is None:
            self._kept[upload.scene_id] = task.result()
            self.kept_bytes += task.result().kept_bytes
            while self.kept_bytes > self._most_bytes and len(self._kept) > 1:
                self.forget(next(iter(self._kept)))

    async def _make(self, upload: Upload) -> Scene:
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(self._threads, self._readers.read, upload.paths, self._takes)
        stages = dict.fromkeys(SCENE_STAGES, 0.0) | {"load": read.load_ms}
        features = await loop.run_in_executor(self._threads, self._stored, read) if self._store is not None else None
        source: Source = "store"
        if features is None:
            encoded = await self._engine.encode(read.loaded, host_copy=self._store is not None)
            stages |= {"preprocess": encoded.preprocess_ms, "encode": encoded.encode_ms}
            features, source = encoded.features, "encoded"
            if self._store is not None and encoded.on_host is not None:
                await loop.run_in_executor(self._threads, self._store.put, encoded.on_host)
        return Scene(
            scene_id=upload.scene_id,
            name=upload.name,
            num_bytes=upload.num_bytes,
            created=int(time.time()),
            media=read.loaded.media,
            media_sha256=read.loaded.media_sha256,
            num_events=read.loaded.num_events,
            notes=read.loaded.notes,
            pictures=read.pictures,
            features=features,
            stages_ms=stages,
            source=source,
        )

    def _stored(self, read: Read) -> Features | None:
        model = self._engine.model
        assert self._store is not None
        dtype = str(model.dtype).removeprefix("torch.")
        found = self._store.get(model.fingerprint, read.loaded.media_sha256, dtype)
        return None if found is None else found.to(model.device)
