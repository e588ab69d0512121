"""Untrusted files in sandboxed processes: equal frames, and no harm by files that hang, crash or swell."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.started import PATIENCE_S, wait_for
from unfuse import processes
from unfuse.errors import MediaError
from unfuse.samples import Sample
from unfuse.serving import sandbox_client
from unfuse.serving.kinds import LOADERS
from unfuse.serving.sandbox_client import SandboxClient


def frame(head: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxClient]:
    made = SandboxClient(1, PATIENCE_S)
    yield made
    made.close()


def test_events_are_read_as_by_the_model(sandbox: SandboxClient, recording: Path) -> None:
    read = sandbox.read([recording], "events")
    expected = LOADERS["events"](Sample.from_events(recording))
    assert read.loaded.media_sha256 == expected.media_sha256
    assert read.loaded.num_events == expected.num_events
    assert len(read.pictures) == 5
    assert all(picture.startswith(b"\x89PNG") for picture in read.pictures)
    for ours, theirs in zip(read.loaded.frames, expected.frames, strict=True):
        assert np.array_equal(ours, theirs)
        assert not ours.flags.writeable


def test_every_medium_for_every_kind_of_model(sandbox: SandboxClient, media: Path) -> None:
    events, video = media / "event_npy/demo/000000.npy", media / "mp4/demo/000000.mp4"
    frames = sorted((media / "event_image/demo").glob("*.png"))
    assert len(sandbox.read([video], "video").loaded.frames) == 8
    assert len(sandbox.read([video], "image").loaded.frames) == 1
    assert len(sandbox.read(frames, "events").loaded.frames) == len(frames) == 5
    assert len(sandbox.read(frames[:1], "image").loaded.frames) == 1
    assert "no video or image: this model was shown event frames" in sandbox.read([events], "video").loaded.notes
    for paths, kind, words in (
        ([video], "events", "a video"),
        (frames, "image", "found 5"),
        ([events, frames[0]], "events", "one kind"),
    ):
        with pytest.raises(MediaError, match=words):
            sandbox.read(paths, kind)  # type: ignore[arg-type]


def test_hdf5_through_two_processes(sandbox: SandboxClient, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    n = 5000
    with h5py.File(tmp_path / "events.h5", "w") as file:
        for name, values in (("x", np.arange(n) % 640), ("y", np.arange(n) % 480), ("p", np.arange(n) % 2)):
            file[f"events/{name}"] = values.astype("u2")
        file["events/t"] = np.arange(n, dtype="u4")
    assert sandbox.read([tmp_path / "events.h5"], "events").loaded.num_events == n


def test_no_secret_and_no_model_in_the_process(monkeypatch: pytest.MonkeyPatch, recording: Path) -> None:
    monkeypatch.setenv("UNFUSE_SERVE_TOKEN", "secret-secret-secret")
    one = SandboxClient(1, PATIENCE_S)
    try:
        one.read([recording], "events")
        pid = one._free.queue[0].child().pid
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    finally:
        one.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_sandbox_that_hangs_is_killed(recording: Path, tmp_path: Path) -> None:
    """Reading a named pipe never ends. Another process then reads the next file."""
    os.mkfifo(tmp_path / "pipe")
    one = SandboxClient(1, 2.0)
    try:
        with pytest.raises(MediaError, match="took too long"):
            one.read([tmp_path / "pipe"], "events")
        one._seconds = PATIENCE_S
        assert one.read([recording], "events").loaded.num_events
    finally:
        one.close()


def test_a_sandbox_that_crashes_is_replaced(sandbox: SandboxClient, recording: Path) -> None:
    sandbox.read([recording], "events")
    child = sandbox._free.queue[0].child()
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: not child.usable)
    assert sandbox.read([recording], "events").loaded.num_events


def test_a_file_that_takes_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 60 million pixels in 60 kB, beyond the limit."""
    monkeypatch.setattr(sandbox_client, "MEMORY_BYTES", 700 << 20)
    Image.new("L", (7800, 7800)).save(tmp_path / "big.png", compress_level=1)
    small = SandboxClient(1, PATIENCE_S)
    try:
        with pytest.raises(MediaError, match="too much memory"):
            small.read([tmp_path / "big.png"], "image")
    finally:
        small.close()


def test_a_sandbox_ends_with_its_parent_process(recording: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from unfuse.serving.sandbox_client import SandboxClient\n"
        f"sandbox = SandboxClient(1, {PATIENCE_S})\nsandbox.read([Path({str(recording)!r})], 'events')\n"
        "print(sandbox._free.queue[0].child().pid, flush=True)\n"
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


def test_messages_contain_no_path_of_this_machine(sandbox: SandboxClient, tmp_path: Path) -> None:
    path = tmp_path / "0123456789abcdef"
    path.write_bytes(bytes(100))
    with pytest.raises(MediaError) as caught:
        sandbox.read([path], "events")
    assert str(tmp_path) not in str(caught.value)
    assert path.name not in str(caught.value)
    assert str(caught.value).startswith("upload: found an unknown format")


@pytest.mark.parametrize(
    "message",
    [b"no frame\n", frame(b"no json"), frame(b"{}"), frame(b'{"sizes": []}'), frame(b'{"sizes": [1e12]}'), b""],
)
def test_a_sandbox_that_sends_rubbish(message: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that took the process over could have it send anything."""
    fake = tmp_path / "fake"
    code = "import socket, sys\nend = socket.socket(fileno=int(sys.argv[3]))\nend.recv(1000)\n"
    fake.write_text(f"#!{sys.executable} -S\n{code}end.sendall({message!r})\n")
    fake.chmod(0o700)
    monkeypatch.setattr(processes.sys, "executable", str(fake))
    one = SandboxClient(1, PATIENCE_S)
    with pytest.raises(MediaError, match="on which its reader (gave|ended)"):
        one.read([fake], "events")
    one.close()
