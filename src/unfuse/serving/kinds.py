"""What an upload is. Its first bytes say so, never its name or the type that a client claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from unfuse.adapters.media import Shown
from unfuse.errors import MediaError
from unfuse.samples import Sample

Kind = Literal["events", "image", "video"]
HEAD_BYTES: Final = 16
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_MATROSKA: Final = b"\x1aE\xdf\xa3"
MAX_PICTURES: Final = 32


def kind_of(head: bytes) -> Kind:
    """Of the first ``HEAD_BYTES``; whatever is neither a picture nor a video must prove to be events."""
    if head.startswith((_PNG, _JPEG)) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head[4:8] == b"ftyp" or head.startswith(_MATROSKA) or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    return "events"


def sample_of(paths: Sequence[Path], kind: Kind, shown: Shown) -> Sample:
    """The scene that files of one kind are, for a model that is shown ``shown``.

    A model of events takes pictures for event frames, in order.

    Raises:
        MediaError: a model of events was given a video, or several files are not the frames of one scene.
    """
    if kind == "image" and shown == "events":
        if len(paths) > MAX_PICTURES:
            raise MediaError("pictures", found=len(paths), expected=f"at most {MAX_PICTURES} event frames")
        return Sample.from_frames(list(paths))
    if len(paths) != 1:
        raise MediaError(f"files of one scene ({kind})", found=len(paths), expected="one")
    if kind == "video" and shown == "events":
        raise MediaError("upload", found="a video", expected="events, or event frames as PNG: this model sees events")
    if kind == "image":
        return Sample.from_image(paths[0])
    return Sample.from_video(paths[0]) if kind == "video" else Sample.from_events(paths[0])
