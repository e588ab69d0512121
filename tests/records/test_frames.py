"""Strips of frames: small, shared, and never a way out of their folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from unfuse.errors import RunFolderError
from unfuse.records import frames
from unfuse.records.frames import FrameStore, frames_of

HASH = "0123456789abcdef" * 4


def frame(value: int, height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def test_a_strip_shows_the_frames_in_order(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "frames")
    assert not store.holds(HASH)
    store.write(HASH, [frame(0), frame(128), frame(255)])
    assert store.holds(HASH)
    strip = store.read(HASH)
    assert strip is not None
    assert (strip.width, strip.height) == (3 * 128 + 2 * 2, 96)
    picture = np.asarray(Image.open(io.BytesIO(strip.data)).convert("L"), dtype=int)
    middles = [picture[48, 64 + i * 130] for i in range(3)]
    assert middles == pytest.approx([0, 128, 255], abs=6)
    assert [path.name for path in store.path.iterdir()] == [f"{HASH}.webp"], "nothing else is left behind"


def test_many_frames_and_odd_sizes(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "frames")
    store.write(HASH, [frame(8 * i, 100, 100) for i in range(30)])
    strip = store.read(HASH)
    assert strip is not None
    assert strip.width == 8 * 96 + 7 * 2
    store.write("f" * 64, [frame(1, 1, 5000), frame(1, 5000, 1)])
    wide = store.read("f" * 64)
    assert wide is not None
    assert wide.width == 3 * 96 + 1 + 2, "no frame is wider than three times its height"


def test_lines_of_events_stay_visible(tmp_path: Path) -> None:
    """A line of one pixel, made five times smaller, is a fifth as dark; the nearest pixel alone would often miss it."""
    events = frame(255)
    events[:, 301] = (255, 0, 0)
    store = FrameStore(tmp_path / "frames")
    store.write(HASH, [events])
    strip = store.read(HASH)
    assert strip is not None
    green = np.asarray(Image.open(io.BytesIO(strip.data)).convert("RGB"), dtype=int)[..., 1]
    assert green[:, 60].mean() == pytest.approx(255 * 4 / 5, abs=12)
    assert green[:, 40].mean() > 250


@given(st.text() | st.none())
def test_only_a_hash_is_a_name(name: str | None) -> None:
    store = FrameStore(Path("frames"))
    if name is None or not (len(name) == 64 and set(name) <= set("0123456789abcdef")):
        assert not store.holds(name)
        assert store.read(name) is None


@pytest.mark.parametrize("name", ["../" + HASH[3:], HASH.upper(), HASH + "\n", HASH[:-1], "/" + HASH[1:]])
def test_no_way_out(tmp_path: Path, name: str) -> None:
    store = FrameStore(tmp_path / "frames")
    store.write(name, [frame(0)])
    assert not list(tmp_path.rglob("*.webp"))


def test_what_is_no_small_picture_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FrameStore(tmp_path / "frames")
    store.write(HASH, [frame(0)])
    path = store.path / f"{HASH}.webp"
    whole = path.read_bytes()
    for damaged in (b"", b"<svg onload='alert(1)'/>", whole[: len(whole) // 4]):
        path.write_bytes(damaged)
        assert store.read(HASH) is None
    Image.new("RGB", (4, 4)).save(path, "PNG")
    assert store.read(HASH) is None, "another format under this name"
    path.write_bytes(whole)
    monkeypatch.setattr(frames, "_MAX_BYTES", len(whole) - 1)
    assert store.read(HASH) is None


def test_a_full_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FrameStore(tmp_path / "frames")
    assert not store.full
    monkeypatch.setattr(frames, "MAX_STRIPS", 1)
    store.write(HASH, [frame(0)])
    assert store.full


def test_beside_the_run_or_beside_the_comparison(tmp_path: Path) -> None:
    run = tmp_path / "all" / "01-demo"
    run.mkdir(parents=True)
    assert frames_of(run).path == tmp_path / "all" / "frames"
    (run / "frames").mkdir()
    assert frames_of(run).path == run / "frames"


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "frames").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be written"):
        FrameStore(tmp_path / "frames").write(HASH, [frame(0)])
