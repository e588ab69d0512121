"""Cache of scenes: encoded once, evicted in order, read back from the store."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving.fakes import LOADED, FakeModel
from tests.started import PATIENCE_S
from unfuse.errors import FeaturesError, MediaError
from unfuse.feature_store import FeatureStore
from unfuse.serving.engine_loop import BusyError, EngineLoop
from unfuse.serving.intake import Upload, scene_id
from unfuse.serving.sandbox_client import LoadedUpload
from unfuse.serving.scenes import SceneCache
from unfuse.stages import Loaded

PICTURE = b"\x89PNG" + bytes(1000)
SIZE = len(PICTURE) + 4 * 2 * 4
"""Of one scene: its picture and its features."""
NUMBERS = itertools.count()
"""Of uploads, so that each has a file of its own."""


class FakeSandbox:
    """Behaves as the file's name says."""

    def __init__(self) -> None:
        self.read_files: list[str] = []
        self.gate = threading.Event()
        """Unset holds every read."""
        self.gate.set()

    def read(self, paths: Sequence[Path], takes: str) -> LoadedUpload:
        assert takes == "events"
        text = paths[0].read_text()
        self.read_files.append(text)
        assert self.gate.wait(PATIENCE_S)
        if text == "unreadable":
            raise MediaError("upload", found="nothing", expected="something")
        media = text if text == "bad" else text * 64
        loaded = Loaded(frames=LOADED.frames, media="event_data", media_sha256=media[:64], question="")
        return LoadedUpload(loaded=loaded, pictures=(PICTURE,), load_ms=3.0)


def upload(folder: Path, text: str) -> Upload:
    path = folder / f"{text}-{next(NUMBERS)}"
    path.write_text(text)
    return Upload(scene_id=scene_id([text]), name=text, num_bytes=len(text), paths=(path,))


@asynccontextmanager
async def caching(
    max_bytes: int, store: FeatureStore | None = None, max_pending: int = 64
) -> AsyncIterator[tuple[SceneCache, FakeModel]]:
    model: Any = FakeModel()
    engine = EngineLoop(model, capacity=2, queue=2, warm=lambda: LOADED)
    engine.start()
    sandbox: Any = FakeSandbox()
    scenes = SceneCache(engine, sandbox, max_bytes=max_bytes, max_pending=max_pending, store=store)
    try:
        while not engine.ready:
            await asyncio.sleep(0.001)
        model.encoded.clear()
        yield scenes, model
    finally:
        await asyncio.to_thread(engine.close)
        scenes.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await work()

    asyncio.run(all_of_it())


def test_the_same_recording_sent_by_many_is_encoded_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with caching(10 * SIZE) as (scenes, model):
            taken = await asyncio.gather(*(scenes.get_or_encode(upload(tmp_path, "a")) for _ in range(8)))
            assert [reused for _, reused in taken] == [False] + 7 * [True]
            assert len({id(scene) for scene, _ in taken}) == 1
            assert len(model.encoded) == 1
            assert await scenes.get_or_encode(upload(tmp_path, "a")) == (taken[0][0], True)
            assert scenes.memory_bytes == SIZE
            assert taken[0][0].stages_ms["load"] == 3.0

    run(work)
    assert not list(tmp_path.iterdir()), "every file is gone"


def test_the_least_recently_used_scene_is_evicted(tmp_path: Path) -> None:
    async def work() -> None:
        async with caching(2 * SIZE) as (scenes, model):
            a, b = [(await scenes.get_or_encode(upload(tmp_path, text)))[0] for text in "ab"]
            assert scenes.get(a.scene_id) is a
            c, _ = await scenes.get_or_encode(upload(tmp_path, "c"))
            assert scenes.all() == [a, c]
            assert scenes.get(b.scene_id) is None
            await scenes.get_or_encode(upload(tmp_path, "b"))
            assert [media[0] for media in model.encoded] == ["a", "b", "c", "b"]
            assert scenes.memory_bytes == 2 * SIZE

    run(work)


def test_a_scene_larger_than_the_cache_stays(tmp_path: Path) -> None:
    async def work() -> None:
        async with caching(1) as (scenes, _):
            for text in "ab":
                scene, _ = await scenes.get_or_encode(upload(tmp_path, text))
                assert scenes.all() == [scene]

    run(work)


def test_pending_uploads_are_limited(tmp_path: Path) -> None:
    async def work() -> None:
        async with caching(10 * SIZE, max_pending=2) as (scenes, _):
            sent = [scenes.get_or_encode(upload(tmp_path, text)) for text in "abca"]
            taken = await asyncio.gather(*sent, return_exceptions=True)
            assert [type(each) for each in taken] == [tuple, tuple, BusyError, tuple], "the same again is no other"
            assert not (await scenes.get_or_encode(upload(tmp_path, "c")))[1]

    run(work)
    assert not list(tmp_path.iterdir())


def test_a_failed_scene_is_not_cached_and_leaves_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with caching(10 * SIZE) as (scenes, _):
            for text, error in (("unreadable", MediaError), ("bad", FeaturesError)):
                failed = await asyncio.gather(
                    *(scenes.get_or_encode(upload(tmp_path, text)) for _ in range(3)), return_exceptions=True
                )
                assert [type(each) for each in failed] == 3 * [error]
            assert scenes.all() == []
            assert scenes.memory_bytes == 0

    run(work)
    assert not list(tmp_path.iterdir())


def test_a_disconnected_client_cancels_nothing_for_others(tmp_path: Path) -> None:
    async def work() -> None:
        async with caching(10 * SIZE) as (scenes, _):
            sandbox: Any = scenes._sandbox
            sandbox.gate.clear()
            first = asyncio.create_task(scenes.get_or_encode(upload(tmp_path, "a")))
            while not sandbox.read_files:
                await asyncio.sleep(0.001)
            second = asyncio.create_task(scenes.get_or_encode(upload(tmp_path, "a")))
            await asyncio.sleep(0)
            first.cancel()
            sandbox.gate.set()
            scene, reused = await second
            assert first.cancelled()
            assert reused
            assert scenes.all() == [scene]

    run(work)
    assert not list(tmp_path.iterdir())


def test_features_are_evicted_before_scenes_with_a_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")

    async def work() -> None:
        async with caching(2 * SIZE - 1, store) as (scenes, model):
            a, b = [(await scenes.get_or_encode(upload(tmp_path, text)))[0] for text in "ab"]
            cached = scenes.get(a.scene_id)
            assert cached is not None
            assert cached.features is None
            assert cached.pictures == a.pictures
            assert cached.media_tokens == 4
            found = await scenes.features(cached)
            assert found is not None
            assert found.digest == a.features.digest  # type: ignore[union-attr]
            assert len(model.encoded) == 2
            other = scenes.get(b.scene_id)
            assert other is not None
            assert other.features is None, "there is room for one"
            store.clear()
            assert await scenes.features(other) is None
            assert scenes.get(b.scene_id) is None, "a scene without a source is not cached"

    run(work)


def test_an_earlier_process_s_scenes_are_not_encoded_again(tmp_path: Path) -> None:
    async def work(expected: str) -> None:
        async with caching(10 * SIZE, FeatureStore(tmp_path / "store")) as (scenes, model):
            scene, reused = await scenes.get_or_encode(upload(tmp_path, "a"))
            assert not reused
            assert scene.source == expected
            assert len(model.encoded) == (expected == "encoded")
            assert (scene.stages_ms["encode"] == 0) == (expected == "store")

    run(lambda: work("encoded"))
    run(lambda: work("store"))


def test_a_damaged_entry_is_encoded_again(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")

    async def work() -> None:
        async with caching(10 * SIZE, store) as (scenes, model):
            scene, _ = await scenes.get_or_encode(upload(tmp_path, "a"))
            path = store.entry_path(scene.provenance)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            scenes._drop(scene.scene_id)
            again, _ = await scenes.get_or_encode(upload(tmp_path, "a"))
            assert again.source == "encoded"
            assert len(model.encoded) == 2

    run(work)
    assert store.counts.damaged == 1


def test_a_deleted_scene_leaves_the_store(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")

    async def work() -> None:
        async with caching(10 * SIZE, store) as (scenes, model):
            scene, _ = await scenes.get_or_encode(upload(tmp_path, "a"))
            assert store.info().entries == 1
            await scenes.delete(scene)
            assert store.info().entries == 0
            assert scenes.all() == []
            await scenes.get_or_encode(upload(tmp_path, "a"))
            assert len(model.encoded) == 2

    run(work)


@pytest.mark.parametrize("digests", [["a" * 64], ["a" * 64, "b" * 64]])
def test_ids_are_hashes_of_the_contents(digests: list[str]) -> None:
    assert scene_id(digests) == scene_id(list(digests))
    assert scene_id(digests) != scene_id([*digests, "c" * 64])
    assert scene_id(digests) != scene_id(["d" * 64])
