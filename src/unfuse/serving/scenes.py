"""Scenes by name: encoded once, kept while there is room, the one longest unused given up first.

Two clients that send the same recording at the same time have it encoded once. With a feature store, scenes whose
features were given up are still known and get them back from there, as do recordings that an earlier process encoded.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar, TypeVarTuple

from unfuse.feature_store import FeatureStore
from unfuse.features import Features
from unfuse.serving.engine_loop import BusyError, EngineLoop
from unfuse.serving.intake import Upload
from unfuse.serving.kinds import taken_by
from unfuse.serving.reading import Readers
from unfuse.stages import Provenance

Source = Literal["encoded", "store"]
_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
SCENE_STAGES: Final = ("load", "preprocess", "encode")


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
    features: Features | None = field(repr=False)
    """None where they were given up and must come from the store."""
    origin: Provenance
    """Of the features."""
    stages_ms: Mapping[str, float]
    """``load``, ``preprocess``, ``encode``: what they took when it was encoded."""
    source: Source

    @property
    def media_tokens(self) -> int:
        """Positions of a prompt that it takes."""
        return self.origin.shape[0]

    @property
    def kept_bytes(self) -> int:
        """Memory that it holds."""
        tensors = () if self.features is None else (self.features.tensor, *self.features.layers)
        return sum(len(p) for p in self.pictures) + sum(t.numel() * t.element_size() for t in tensors)


class Scenes:
    """What is kept, and how it comes to be. For the event loop's thread."""

    def __init__(
        self,
        engine: EngineLoop,
        readers: Readers,
        *,
        most_bytes: int,
        most_made: int = 64,
        store: FeatureStore | None = None,
    ):
        """Empty.

        Args:
            engine: encodes.
            readers: turn files into frames.
            most_bytes: memory for all scenes; the last one asked about stays whatever its size.
            most_made: uploads that are read and encoded, or wait for it, at one time.
            store: outlives the process.
        """
        self._engine = engine
        self._dtype = str(engine.model.dtype).removeprefix("torch.")
        self._takes = taken_by(engine.model.adapter)
        self._readers = readers
        self._most_bytes = most_bytes
        self._most_made = most_made
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

    async def features(self, scene: Scene) -> Features | None:
        """Of a scene that is kept, or None where they are nowhere any more: then the scene is no longer kept either."""
        if scene.features is None and self._store is not None:
            found = await self._from(self._store, scene.media_sha256)
            if scene.scene_id in self._kept:
                if found is None:
                    self._drop(scene.scene_id)
                else:
                    self._keep(replace(scene, features=found))
            return found
        return scene.features

    async def forget(self, scene: Scene) -> None:
        """Gives a scene up here and in the store."""
        self._drop(scene.scene_id)
        if self._store is not None:
            await self._threaded(self._store.forget, scene.origin)

    async def take(self, upload: Upload) -> tuple[Scene, bool]:
        """The scene of an upload, whose files are then no longer needed, and whether it was known already.

        Raises:
            UnfuseError: it cannot be read or encoded.
            BusyError: as many wait as may.
            EngineGoneError: the engine stopped.
        """
        if scene := self.get(upload.scene_id):
            upload.discard()
            return scene, True
        task = self._making.get(upload.scene_id)
        joined = task is not None
        if task is None and len(self._making) >= self._most_made:
            upload.discard()
            raise BusyError
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
            self._keep(task.result())

    def _keep(self, scene: Scene) -> None:
        self._drop(scene.scene_id)
        self._kept[scene.scene_id] = scene
        self.kept_bytes += scene.kept_bytes
        if self._store is not None:
            for old in [s for s in self._kept.values() if s.features is not None and s is not scene]:
                if self.kept_bytes <= self._most_bytes:
                    break
                less = replace(old, features=None)
                self._kept[old.scene_id] = less  # in its place: giving up is no use
                self.kept_bytes -= old.kept_bytes - less.kept_bytes
        while self.kept_bytes > self._most_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, scene_id: str) -> None:
        if scene := self._kept.pop(scene_id, None):
            self.kept_bytes -= scene.kept_bytes

    async def _from(self, store: FeatureStore, media_sha256: str) -> Features | None:
        model = self._engine.model
        found = await self._threaded(store.get, model.fingerprint, media_sha256, self._dtype)
        return None if found is None else await self._engine.placed(found)

    async def _threaded(self, work: Callable[[*_Args], _T], *arguments: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _make(self, upload: Upload) -> Scene:
        read = await self._threaded(self._readers.read, upload.paths, self._takes)
        stages = dict.fromkeys(SCENE_STAGES, 0.0) | {"load": read.load_ms}
        features: Features | None = None
        source: Source = "store"
        if self._store is not None:
            features = await self._from(self._store, read.loaded.media_sha256)
        if features is None:
            encoded = await self._engine.encode(read.loaded, host_copy=self._store is not None)
            stages |= {"preprocess": encoded.preprocess_ms, "encode": encoded.encode_ms}
            features, source = encoded.features, "encoded"
            if self._store is not None and encoded.on_host is not None:
                await self._threaded(self._store.put, encoded.on_host)
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
            origin=features.provenance,
            stages_ms=stages,
            source=source,
        )
