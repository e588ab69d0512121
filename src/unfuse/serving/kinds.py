"""Medium of an upload, and its sample for a model; needs no model and no torch.

The first bytes decide the medium, not the file name or the type that a client claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from unfuse.adapters.media import Takes, evenly, load_event_frames, load_frames, middle
from unfuse.errors import MediaError
from unfuse.samples import Sample
from unfuse.stages import Loaded

_VIDEO_FRAMES: Final = 8
LOADERS: Final[Mapping[Takes, Callable[[Sample], Loaded]]] = {
    "events": load_event_frames,
    "video": lambda sample: load_frames(sample, evenly(_VIDEO_FRAMES)),
    "image": lambda sample: load_frames(sample, middle),
}
"""Stage 1 of the adapters by the medium that a model takes; tests hold both equal."""

Kind = Literal["events", "image", "video"]
HEAD_BYTES: Final = 16
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_GIFS: Final = (b"GIF87a", b"GIF89a")
_MATROSKA: Final = b"\x1aE\xdf\xa3"
MAX_PICTURES: Final = 32


def kind_of(head: bytes) -> Kind:
    """Return the medium of a file's first ``HEAD_BYTES``; an unknown one is read as events."""
    if head.startswith((_PNG, _JPEG, *_GIFS)) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head[4:8] == b"ftyp" or head.startswith(_MATROSKA) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    return "events"


def sample_of(paths: Sequence[Path], kind: Kind, takes: Takes) -> Sample:
    """Return the sample in files of one kind, for a model that accepts ``takes``.

    A model of events accepts pictures as event frames, in order.

    Raises:
        MediaError: a model of events was given a video, or several files are not the frames of one scene.
    """
    if kind == "image" and takes == "events":
        if len(paths) > MAX_PICTURES:
            raise MediaError("pictures", found=len(paths), expected=f"at most {MAX_PICTURES} event frames")
        return Sample.from_frames(list(paths))
    if len(paths) != 1:
        raise MediaError(f"files of one scene ({kind})", found=len(paths), expected="one file")
    if kind == "video" and takes == "events":
        raise MediaError("upload", found="a video", expected="events, or event frames as PNG: this model sees events")
    if kind == "image":
        return Sample.from_image(paths[0])
    return Sample.from_video(paths[0]) if kind == "video" else Sample.from_events(paths[0])
