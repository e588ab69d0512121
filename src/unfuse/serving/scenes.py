"""LRU cache of encoded scenes.

Two clients that send the same recording at the same time have it encoded once. With a feature store, evicted features
are read back from the store, as are the features that an earlier process encoded.
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
from unfuse.serving.sandbox_client import SandboxClient
from unfuse.stages import Provenance

Source = Literal["encoded", "store"]
_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
SCENE_STAGES: Final = ("load", "preprocess", "encode")


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedScene:
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
    """None if they were evicted and must come from the store."""
    provenance: Provenance
    """Provenance of the features."""
    stages_ms: Mapping[str, float]
    """Times of ``load``, ``preprocess`` and ``encode`` when the scene was encoded."""
    source: Source

    @property
    def media_tokens(self) -> int:
        """Number of prompt positions that the scene takes."""
        return self.provenance.shape[0]

    @property
    def memory_bytes(self) -> int:
        """Memory of features and pictures."""
        tensors = () if self.features is None else (self.features.tensor, *self.features.layers)
        return sum(len(p) for p in self.pictures) + sum(t.numel() * t.element_size() for t in tensors)


class SceneCache:
    """Encoded scenes by ID. For the event loop's thread."""

    def __init__(
        self,
        engine: EngineLoop,
        sandbox: SandboxClient,
        *,
        max_bytes: int,
        max_pending: int = 64,
        store: FeatureStore | None = None,
    ):
        """Create an empty cache.

        Args:
            engine: encodes.
            sandbox: turns files into frames.
            max_bytes: memory for all scenes; the scene used last stays at any size.
            max_pending: uploads that wait or are being encoded.
            store: outlives the process.
        """
        self._engine = engine
        self._dtype = str(engine.model.dtype).removeprefix("torch.")
        self._takes = engine.model.adapter.takes
        self._sandbox = sandbox
        self._max_bytes = max_bytes
        self._max_pending = max_pending
        self._store = store
        self._scenes: OrderedDict[str, CachedScene] = OrderedDict()
        self.memory_bytes = 0
        """Memory of all scenes."""
        self._pending: dict[str, asyncio.Task[CachedScene]] = {}
        # Own threads: a slow file must not occupy the shared ones.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="unfuse-read")

    def __len__(self) -> int:
        return len(self._scenes)

    def all(self) -> list[CachedScene]:
        """Return all scenes, the latest used last."""
        return list(self._scenes.values())

    def get(self, scene_id: str) -> CachedScene | None:
        """Return a scene and mark it as the latest used."""
        scene = self._scenes.get(scene_id)
        if scene is not None:
            self._scenes.move_to_end(scene_id)
        return scene

    async def features(self, scene: CachedScene) -> Features | None:
        """Return a scene's features. If they are missing in the store too, remove the scene and return None."""
        if scene.features is None and self._store is not None:
            found = await self._load(self._store, scene.media_sha256)
            if scene.scene_id in self._scenes:
                if found is None:
                    self._drop(scene.scene_id)
                else:
                    self._insert(replace(scene, features=found))
            return found
        return scene.features

    async def delete(self, scene: CachedScene) -> None:
        """Delete a scene here and in the store."""
        self._drop(scene.scene_id)
        if self._store is not None:
            await self._in_thread(self._store.forget, scene.provenance)

    async def get_or_encode(self, upload: Upload) -> tuple[CachedScene, bool]:
        """Return the scene of an upload, and whether it was or is being encoded already; delete the upload's files.

        Raises:
            UnfuseError: it cannot be read or encoded.
            BusyError: too many uploads wait.
            EngineStoppedError: the engine stopped.
        """
        if scene := self.get(upload.scene_id):
            upload.discard()
            return scene, True
        task = self._pending.get(upload.scene_id)
        joined = task is not None
        if task is None and len(self._pending) >= self._max_pending:
            upload.discard()
            raise BusyError
        if task is None:
            task = asyncio.create_task(self._encode(upload))
            self._pending[upload.scene_id] = task
            task.add_done_callback(lambda task: self._encoded(upload, task))
        else:
            upload.discard()
        # A client that disconnects does not cancel it for the others.
        return await asyncio.shield(task), joined

    def close(self) -> None:
        """Free all scenes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._scenes.clear()

    def _encoded(self, upload: Upload, task: asyncio.Task[CachedScene]) -> None:
        upload.discard()
        del self._pending[upload.scene_id]
        if not task.cancelled() and task.exception() is None:
            self._insert(task.result())

    def _insert(self, scene: CachedScene) -> None:
        self._drop(scene.scene_id)
        self._scenes[scene.scene_id] = scene
        self.memory_bytes += scene.memory_bytes
        if self._store is not None:
            for old in [s for s in self._scenes.values() if s.features is not None and s is not scene]:
                if self.memory_bytes <= self._max_bytes:
                    break
                less = replace(old, features=None)
                self._scenes[old.scene_id] = less  # at its place in the order: eviction is no use
                self.memory_bytes -= old.memory_bytes - less.memory_bytes
        while self.memory_bytes > self._max_bytes and len(self._scenes) > 1:
            self._drop(next(iter(self._scenes)))

    def _drop(self, scene_id: str) -> None:
        if scene := self._scenes.pop(scene_id, None):
            self.memory_bytes -= scene.memory_bytes

    async def _load(self, store: FeatureStore, media_sha256: str) -> Features | None:
        model = self._engine.model
        found = await self._in_thread(store.get, model.fingerprint, media_sha256, self._dtype)
        return None if found is None else await self._engine.to_device(found)

    async def _in_thread(self, work: Callable[[*_Args], _T], *arguments: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _encode(self, upload: Upload) -> CachedScene:
        read = await self._in_thread(self._sandbox.read, upload.paths, self._takes)
        stages = dict.fromkeys(SCENE_STAGES, 0.0) | {"load": read.load_ms}
        features: Features | None = None
        source: Source = "store"
        if self._store is not None:
            features = await self._load(self._store, read.loaded.media_sha256)
        if features is None:
            encoded = await self._engine.encode(read.loaded, host_copy=self._store is not None)
            stages |= {"preprocess": encoded.preprocess_ms, "encode": encoded.encode_ms}
            features, source = encoded.features, "encoded"
            if self._store is not None and encoded.on_host is not None:
                await self._in_thread(self._store.put, encoded.on_host)
        return CachedScene(
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
            provenance=features.provenance,
            stages_ms=stages,
            source=source,
        )
