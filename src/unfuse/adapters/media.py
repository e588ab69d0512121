"""Stage 1: loads the frames of a sample that a model gets.

A model of camera frames gets the sample's image, else frames of its video file, else of its folder of video frames. If
a sample has events only, such a model gets its event frames, with a note.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from unfuse.errors import MediaError
from unfuse.events import event_frames, read_events
from unfuse.measure.clock import span
from unfuse.samples import Sample, clean_question
from unfuse.samples.media import read_image
from unfuse.samples.sample import frames_sha256, media_sha256
from unfuse.samples.video import select_frames
from unfuse.stages import Loaded

Takes = Literal["events", "video", "image"]
"""Medium that a model takes."""
EVENT_FRAMES: Final = 5
"""Frames per recording, of equal event count (EventGPT's published inference code)."""
_DECODING: Final = "decoding 2"
"""Changes with the pixels that files give, so that features of other pixels are not taken for theirs."""
_PUBLISHED_LIMIT_US: Final = 100_000

Pick = Callable[[int], list[int]]
"""Maps the number of frames to the indices that are used. The function's name enters the media hash."""


def evenly(count: int) -> Pick:
    """Return a picker of ``count`` evenly spaced indices, the first frame included (Video-LLaVA's model card)."""

    def evenly_spaced(total: int) -> list[int]:
        return [i * total // count for i in range(count)]

    evenly_spaced.__name__ = f"{count} evenly spaced frames"
    return evenly_spaced


def middle(total: int) -> list[int]:
    """Return the index of the middle frame."""
    return [total // 2]


def selected_frames_sha256(sample: Sample, pick: Pick) -> str:
    """Return the media hash of ``load_frames`` without decoding any file; empty for a sample without media.

    Raises:
        FileAccessError: a file is missing or unreadable.
    """
    rule = f"{pick.__name__}, {_DECODING}"
    if sample.image is not None:
        return media_sha256((sample.image,), f"image, {_DECODING}")
    if sample.video is not None:
        return media_sha256((sample.video,), rule)
    if sample.video_frames is not None:
        if not (files := sample.video_files):
            raise MediaError(str(sample.video_frames), found="no pictures", expected="a folder of PNG or JPEG frames")
        return media_sha256([files[i] for i in pick(len(files))], rule)
    if sample.has_events:
        return hashlib.sha256(f"{event_frames_sha256(sample)} {rule}".encode()).hexdigest()
    return ""


def event_frames_sha256(sample: Sample) -> str:
    """Return the media hash of ``load_event_frames`` without decoding any file."""
    if sample.frames:
        return frames_sha256(sample.frames)
    if sample.event_image:
        return media_sha256(sample.event_image, f"image files, {_DECODING}")
    assert sample.event_data is not None
    unit = "" if sample.time_unit is None else f", times in {sample.time_unit}"
    return media_sha256((sample.event_data,), f"{EVENT_FRAMES} equal-count frames{unit}", sample.window)


def load_frames(sample: Sample, pick: Pick) -> Loaded:
    """Run stage 1 for a model of camera frames.

    Raises:
        MediaError: a file cannot be decoded, or changes while it is read.
    """
    return _load_unchanged(sample, partial(selected_frames_sha256, pick=pick), partial(_frames, pick=pick))


def load_event_frames(sample: Sample) -> Loaded:
    """Run stage 1 for event frames: load ``event_image`` if the sample has it, else rasterise ``event_data``.

    Raises:
        MediaError: a file cannot be decoded, or changes while it is read.
    """
    return _load_unchanged(sample, event_frames_sha256, _event_frames)


def _load_unchanged(sample: Sample, sha256: Callable[[Sample], str], load: Callable[[Sample, str], Loaded]) -> Loaded:
    """Load a sample, and check that its files did not change: features are stored under this hash."""
    before = sha256(sample)
    loaded = load(sample, before)
    if sha256(sample) != before:
        raise MediaError(f"sample {sample.sample_id}", found="files that changed as they were read", expected="at rest")
    return loaded


def _frames(sample: Sample, sha256: str, *, pick: Pick) -> Loaded:
    question = clean_question(sample.question)
    if sample.image is not None:
        return Loaded(frames=[read_image(sample.image)], media="image", media_sha256=sha256, question=question)
    if sample.video is not None:
        frames = select_frames(sample.video, pick)
        return Loaded(frames=frames, media="video", media_sha256=sha256, question=question)
    if sample.video_frames is not None:
        paths = [sample.video_files[i] for i in pick(len(sample.video_files))]
        frames = [read_image(path) for path in paths]
        return Loaded(frames=frames, media="video_frames", media_sha256=sha256, question=question)
    if sample.has_events:
        scene = _event_frames(sample, sha256)
        chosen = [scene.frames[i] for i in pick(len(scene.frames))]
        note = "no video or image: this model was shown event frames"
        return Loaded(
            frames=chosen,
            media=scene.media,
            media_sha256=sha256,
            question=question,
            num_events=scene.num_events,
            notes=(*scene.notes, note),
        )
    return Loaded(frames=[], media="text", media_sha256=sha256, question=question)


def _event_frames(sample: Sample, sha256: str) -> Loaded:
    question = clean_question(sample.question)
    if sample.frames:
        return Loaded(frames=list(sample.frames), media="frames", media_sha256=sha256, question=question)
    if sample.event_image:
        frames = [read_image(path) for path in sample.event_image]
        return Loaded(frames=frames, media="event_image", media_sha256=sha256, question=question)
    assert sample.event_data is not None
    with span("read"):
        stream = read_events(sample.event_data, window=sample.window, time_unit=sample.time_unit)
    with span("rasterise"):
        frames = list(event_frames(stream, EVENT_FRAMES))
    return Loaded(
        frames=frames,
        media="event_data",
        media_sha256=sha256,
        question=question,
        num_events=len(stream),
        notes=(*stream.notes, *_length_note(stream.duration_us)),
    )


def _length_note(duration_us: int) -> tuple[str, ...]:
    if duration_us < _PUBLISHED_LIMIT_US:
        return ()
    return (f"{duration_us / 1e3:.0f} ms of events; EventGPT's published code refuses 100 ms and more",)
