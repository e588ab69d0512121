"""The process that opens strangers' files: a request a line on its input, frames on its output.

python -m unfuse.serving.reader MEMORY_BYTES FILE_BYTES

A reply is a line of JSON and the bytes that it counts. Neither a model nor torch is in this process, nor a secret; it
has limits of its own and may be killed at any time. Video libraries and picture decoders run here and nowhere else.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from unfuse.errors import MediaError, UnfuseError
from unfuse.serving.kinds import HEAD_BYTES, LOADERS, kind_of, sample_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unfuse.stages import Loaded

MAX_FRAME_PIXELS: Final = 16_000_000
MAX_SCENE_PIXELS: Final = 64_000_000
"""Of all frames together: some bytes of a compressed picture unfold to megabytes."""
MAX_ASPECT: Final = 16
"""Longer side over shorter: a tower's picture is made by the shorter side, so a strip would grow to gigabytes."""
SHOWN_PIXELS: Final = 640
"""Longer side of the pictures that are kept to be looked at."""


def main() -> None:
    """Serves until its input ends."""
    memory, room = (int(text) for text in sys.argv[1:])
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, room), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    # A library that prints would be taken for a reply.
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    for line in sys.stdin:
        reply, blobs = served(json.loads(line))
        _write(replies, {**reply, "sizes": [len(blob) for blob in blobs]}, blobs)


def served(request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The answer to one request: what was read, or one line that says why not."""
    paths = [Path(path) for path in request["paths"]]
    try:
        started = time.perf_counter_ns()
        loaded = _loaded(paths, request)
        load_ms = (time.perf_counter_ns() - started) / 1e6
        pictures = [_png(frame) for frame in loaded.frames]
    except UnfuseError as error:
        return {"refused": _unnamed(str(error), paths), "type": type(error).__name__}, []
    except MemoryError:
        return {"refused": "upload: found a file that takes too much memory, expected a smaller one"}, []
    except (ValueError, ArithmeticError, LookupError, TypeError, OSError, RuntimeError) as error:
        return {"refused": f"upload: found a file that cannot be read ({type(error).__name__})"}, []
    about = {
        "load_ms": load_ms,
        "media": loaded.media,
        "media_sha256": loaded.media_sha256,
        "num_events": loaded.num_events,
        "notes": loaded.notes,
        "shapes": [frame.shape for frame in loaded.frames],
    }
    return about, [*(frame.tobytes() for frame in loaded.frames), *pictures]


def _loaded(paths: Sequence[Path], request: dict[str, Any]) -> Loaded:
    kinds = set()
    for path in paths:
        with path.open("rb") as file:
            kinds.add(kind_of(file.read(HEAD_BYTES)))
    if len(kinds) != 1:
        raise MediaError("files of one scene", found=" and ".join(sorted(kinds)) or "none", expected="one kind")
    takes = request["takes"]
    loaded = LOADERS[takes](sample_of(paths, kinds.pop(), takes))
    for frame in loaded.frames:
        height, width = frame.shape[:2]
        if height * width > MAX_FRAME_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
            raise MediaError(
                "upload",
                found=f"a frame of {width} x {height} pixels",
                expected=f"at most {MAX_FRAME_PIXELS} pixels, and no side over {MAX_ASPECT} times the other",
            )
    if (total := sum(frame.shape[0] * frame.shape[1] for frame in loaded.frames)) > MAX_SCENE_PIXELS:
        raise MediaError(
            "upload",
            found=f"{len(loaded.frames)} frames of {total} pixels together",
            expected=f"at most {MAX_SCENE_PIXELS} in a scene",
        )
    return loaded


def _png(frame: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(frame)
    if (longest := max(picture.size)) > SHOWN_PIXELS:
        # A box weighs every event: lines of them stay, single ones of noise fade.
        size = (max(side * SHOWN_PIXELS // longest, 1) for side in picture.size)
        picture = picture.resize((next(size), next(size)), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _unnamed(message: str, paths: Sequence[Path]) -> str:
    """A message without the places of this machine."""
    for path in paths:
        message = message.replace(str(path), "upload").replace(path.stem, "upload")
    return message.replace(sys.executable, "python")


def _write(replies: IO[bytes], reply: dict[str, Any], blobs: Sequence[bytes]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    for blob in blobs:
        replies.write(blob)
    replies.flush()


if __name__ == "__main__":
    main()
