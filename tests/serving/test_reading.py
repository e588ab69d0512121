"""Strangers' files in processes of their own: the same frames, and no harm done by what hangs, crashes or swells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.started import PATIENCE_S, wait_for
from unfuse.errors import MediaError
from unfuse.samples import Sample
from unfuse.serving import reading
from unfuse.serving.kinds import LOADERS
from unfuse.serving.reading import Readers


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    made = Readers(1, PATIENCE_S)
    yield made
    made.close()


def test_events_are_read_as_by_the_model(readers: Readers, recording: Path) -> None:
    read = readers.read([recording], "events")
    expected = LOADERS["events"](Sample.from_events(recording))
    assert read.loaded.media_sha256 == expected.media_sha256
    assert read.loaded.num_events == expected.num_events
    assert len(read.pictures) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in read.pictures)
    for ours, theirs in zip(read.loaded.frames, expected.frames, strict=True):
        assert np.array_equal(ours, theirs)
        assert not ours.flags.writeable


def test_every_medium_for_every_kind_of_model(readers: Readers, media: Path) -> None:
    events, video = media / "event_npy/demo/000000.npy", media / "mp4/demo/000000.mp4"
    frames = sorted((media / "event_image/demo").glob("*.png"))
    assert len(readers.read([video], "video").loaded.frames) == 8
    assert len(readers.read([video], "image").loaded.frames) == 1
    assert len(readers.read(frames, "events").loaded.frames) == len(frames) == 5
    assert len(readers.read(frames[:1], "image").loaded.frames) == 1
    assert "no video or image: this model was shown event frames" in readers.read([events], "video").loaded.notes
    for paths, shown, words in (
        ([video], "events", "a video"),
        (frames, "image", "found 5"),
        ([events, frames[0]], "events", "one kind"),
    ):
        with pytest.raises(MediaError, match=words):
            readers.read(paths, shown)  # type: ignore[arg-type]


def test_hdf5_through_two_processes(readers: Readers, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    n = 5000
    with h5py.File(tmp_path / "events.h5", "w") as file:
        for name, values in (("x", np.arange(n) % 640), ("y", np.arange(n) % 480), ("p", np.arange(n) % 2)):
            file[f"events/{name}"] = values.astype("u2")
        file["events/t"] = np.arange(n, dtype="u4")
    assert readers.read([tmp_path / "events.h5"], "events").loaded.num_events == n


def test_no_secret_and_no_model_in_the_process(monkeypatch: pytest.MonkeyPatch, recording: Path) -> None:
    monkeypatch.setenv("UNFUSE_SERVE_TOKEN", "secret-secret-secret")
    one = Readers(1, PATIENCE_S)
    try:
        one.read([recording], "events")
        process = one._free.queue[0]
        assert process is not None
        pid = process._process.pid
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    finally:
        one.close()
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_hangs_is_ended(recording: Path, tmp_path: Path) -> None:
    """A pipe in the file's place never ends. What was waiting is then read by another process."""
    os.mkfifo(tmp_path / "pipe")
    one = Readers(1, 2.0)
    try:
        with pytest.raises(MediaError, match="took too long"):
            one.read([tmp_path / "pipe"], "events")
        one._seconds = PATIENCE_S
        assert one.read([recording], "events").loaded.num_events
    finally:
        one.close()


def test_one_that_crashes_is_replaced(readers: Readers, recording: Path) -> None:
    readers.read([recording], "events")
    process = readers._free.queue[0]
    assert process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    wait_for(lambda: not process.alive)
    assert readers.read([recording], "events").loaded.num_events


def test_one_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 60 million pixels in 60 kB, where there is room for less."""
    monkeypatch.setattr(reading, "MEMORY_BYTES", 700 << 20)
    Image.new("L", (7800, 7800)).save(tmp_path / "big.png", compress_level=1)
    small = Readers(1, PATIENCE_S)
    try:
        with pytest.raises(MediaError, match="too much memory"):
            small.read([tmp_path / "big.png"], "image")
    finally:
        small.close()


def test_it_ends_with_the_process_that_started_it(recording: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from unfuse.serving.reading import Readers\n"
        f"readers = Readers(1, {PATIENCE_S})\nreaders.read([Path({str(recording)!r})], 'events')\n"
        "print(readers._free.queue[0]._process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    wait_for(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_messages_name_no_place_of_this_machine(readers: Readers, tmp_path: Path) -> None:
    path = tmp_path / "0123456789abcdef"
    path.write_bytes(bytes(100))
    with pytest.raises(MediaError) as caught:
        readers.read([path], "events")
    assert str(tmp_path) not in str(caught.value)
    assert path.name not in str(caught.value)
    assert str(caught.value).startswith("upload: found an unknown format")


@pytest.mark.parametrize("said", [b"no json\n", b"{}\n", json.dumps({"sizes": [1 << 40]}).encode() + b"\n", b""])
def test_a_reader_that_talks_nonsense(said: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Were it taken over by a file, it could say anything."""
    fake = tmp_path / "fake"
    fake.write_text(f"#!/bin/sh\nread line\nprintf '%b' {said!r}\n".replace(" b'", " '"))
    fake.chmod(0o700)
    monkeypatch.setattr(reading.sys, "executable", str(fake))
    one = Readers(1, PATIENCE_S)
    with pytest.raises(MediaError, match="on which its reader (gave|ended)"):
        one.read([fake], "events")
    one.close()
