"""Client of the sandboxed processes (``sandbox_worker``) that decode uploaded files; it does not trust them.

After a crash, a hang or a breach of its memory limit, the file at fault gets an error of one line, and the next file a
new process.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from unfuse.adapters.media import Takes
from unfuse.errors import MediaError
from unfuse.processes import Buffer, Child, ChildError, ChildSlot
from unfuse.stages import DEFAULT_QUESTION, Loaded

MEMORY_BYTES: Final = 4 << 30
FILE_BYTES: Final = 2 << 30
"""Largest file that a decoder may write on the way."""
_MAX_REPLY: Final = 1 << 30
_ENVIRONMENT: Final = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "UNFUSE_CACHE",
    "NUMBA_CACHE_DIR",
)  # fmt: skip
"""Variables that a sandbox is given; the others may be secrets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedUpload:
    """Frames of an uploaded file."""

    loaded: Loaded
    pictures: tuple[bytes, ...]
    """PNG for display, one a frame."""
    load_ms: float
    """Time of the ``load`` stage in the sandbox."""


class SandboxClient:
    """A few sandboxed processes, each for one file at a time. Safe for several threads."""

    def __init__(self, count: int, seconds: float):
        """Start nothing yet.

        Args:
            count: processes at most.
            seconds: limit for one file.
        """
        self._seconds = seconds
        self._free: queue.LifoQueue[ChildSlot[Child]] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(ChildSlot(_start))
        self._closed = False

    def read(self, paths: Sequence[Path], takes: Takes) -> LoadedUpload:
        """Have the files of one scene decoded; blocks.

        Raises:
            MediaError: the files cannot be read, or took too long; one line, without the paths of the files.
        """
        sandbox = self._free.get()
        try:
            with sandbox.exchange() as child:
                child.channel.send_json({"paths": [str(path) for path in paths], "takes": takes})
                reply, blobs = child.channel.receive_json(_MAX_REPLY, time.monotonic() + self._seconds)
                upload = None if "refused" in reply else _upload(reply, blobs)
        except ChildError as error:
            raise MediaError("upload", found=f"a file on which its reader {error}", expected="a sound one") from None
        finally:
            if self._closed:
                sandbox.close()
            self._free.put(sandbox)
        if upload is None:
            raise MediaError(str(reply["refused"]))
        return upload

    def close(self) -> None:
        """End the idle processes; a busy one ends with its file."""
        self._closed = True
        idle = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for sandbox in idle:
            sandbox.close()
            self._free.put(sandbox)


def _start() -> Child:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # The memory limit would count the address space that the threads of a BLAS reserve.
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return Child(
        "unfuse.serving.sandbox_worker",
        (str(MEMORY_BYTES), str(FILE_BYTES)),
        env=environment | threads,
        own_session=True,
    )


def _upload(reply: dict[str, Any], blobs: Sequence[Buffer]) -> LoadedUpload:
    shapes = [tuple(int(length) for length in shape) for shape in reply["shapes"]]
    count = len(shapes)
    if len(blobs) != 2 * count:
        raise ValueError("not as many frames as shapes")
    frames = [
        np.frombuffer(memoryview(blob).toreadonly(), np.uint8).reshape(shape)
        for blob, shape in zip(blobs[:count], shapes, strict=True)
    ]
    loaded = Loaded(
        frames=frames,
        media=str(reply["media"]),
        media_sha256=str(reply["media_sha256"]),
        question=DEFAULT_QUESTION,
        num_events=reply["num_events"],
        notes=tuple(str(note) for note in reply["notes"]),
    )
    pictures = tuple(bytes(blob) for blob in blobs[count:])
    return LoadedUpload(loaded=loaded, pictures=pictures, load_ms=float(reply["load_ms"]))
