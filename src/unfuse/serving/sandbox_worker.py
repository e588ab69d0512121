"""The sandboxed process that opens untrusted files: JSON requests, answered with frames or a reason.

python -m unfuse.serving.sandbox_worker SOCKET MEMORY_BYTES FILE_BYTES

The process holds no model, no torch and no secret, has limits of its own, and may be killed at any time. Video and
image decoders run here and nowhere else.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse.errors import MediaError, UnfuseError
from unfuse.processes import Buffer, serve_json
from unfuse.serving.kinds import HEAD_BYTES, LOADERS, kind_of, sample_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unfuse.stages import Loaded

MAX_FRAME_PIXELS: Final = 16_000_000
MAX_SCENE_PIXELS: Final = 64_000_000
"""Of all frames together: some bytes of a compressed image decode to megabytes."""
MAX_ASPECT: Final = 16
"""Longer over shorter side: a vision tower scales the shorter side, so a strip would grow to gigabytes."""
PICTURE_PIXELS: Final = 640
"""Longer side of the pictures for display."""


def answer(request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Sequence[Buffer]]]:
    """Yield the one reply to a request: the frames and their pictures, or the reason why there are none."""
    paths = [Path(path) for path in request["paths"]]
    try:
        started = time.perf_counter_ns()
        loaded = _loaded(paths, request)
        load_ms = (time.perf_counter_ns() - started) / 1e6
        pictures = [_png(frame) for frame in loaded.frames]
        frames = [frame.tobytes() for frame in loaded.frames]
    except UnfuseError as error:
        yield {"refused": _without_paths(str(error), paths)}, ()
    except MemoryError:
        yield {"refused": "upload: found a file that takes too much memory, expected a smaller one"}, ()
    except (ValueError, ArithmeticError, LookupError, TypeError, OSError, RuntimeError) as error:
        yield {"refused": f"upload: found a file that cannot be read ({type(error).__name__})"}, ()
    else:
        message = {
            "load_ms": load_ms,
            "media": loaded.media,
            "media_sha256": loaded.media_sha256,
            "num_events": loaded.num_events,
            "notes": loaded.notes,
            "shapes": [frame.shape for frame in loaded.frames],
        }
        yield message, [*frames, *pictures]


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
    if (longest := max(picture.size)) > PICTURE_PIXELS:
        # A box weighs every event: lines of them stay, single ones of noise fade.
        size = (max(side * PICTURE_PIXELS // longest, 1) for side in picture.size)
        picture = picture.resize((next(size), next(size)), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _without_paths(message: str, paths: Sequence[Path]) -> str:
    """Replace paths of this machine in a message."""
    for path in paths:
        message = message.replace(str(path), "upload").replace(path.stem, "upload")
    return message.replace(sys.executable, "python")


if __name__ == "__main__":
    serve_json(answer)
