"""What a model that wants camera frames is shown of a sample.

Its image, else frames of its video file, else of its folder of video frames. A row of events alone gives such a model
its event frames, and a note says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from unfuse.events import event_frames, read_events
from unfuse.measure.clock import span
from unfuse.samples import Sample, clean_question
from unfuse.samples.media import read_image
from unfuse.samples.sample import frames_sha256, media_sha256
from unfuse.samples.video import count_frames, read_frames
from unfuse.stages import Loaded

EVENT_FRAMES: Final = 5
"""Runs of equal event count that a recording is cut into (EventGPT's published inference code)."""
_PUBLISHED_LIMIT_US: Final = 100_000

Pick = Callable[[int], list[int]]
"""Number of frames there are to the indices wanted; the name of the function enters the media's hash."""


def evenly(count: int) -> Pick:
    """``count`` evenly spaced indices, the first frame among them (Video-LLaVA's model card)."""

    def evenly_spaced(total: int) -> list[int]:
        return [i * total // count for i in range(count)]

    evenly_spaced.__name__ = f"{count} evenly spaced frames"
    return evenly_spaced


def middle(total: int) -> list[int]:
    """The middle frame."""
    return [total // 2]


def load_frames(sample: Sample, pick: Pick) -> Loaded:
    """Stage 1 for a model of camera frames.

    Raises:
        MediaError: a file cannot be decoded.
    """
    question = clean_question(sample.question)
    if sample.image is not None:
        frames, media = [read_image(sample.image)], "image"
    elif sample.video is not None:
        frames, media = read_frames(sample.video, pick(count_frames(sample.video))), "video"
    elif sample.video_frames is not None:
        files = sample.video_files
        frames, media = [read_image(files[i]) for i in pick(len(files))], "video_frames"
    elif sample.has_events:
        scene = load_event_frames(sample)
        return replace(
            scene,
            frames=[scene.frames[i] for i in pick(len(scene.frames))],
            media_sha256=shown_sha256(sample, pick),
            notes=(*scene.notes, "no video or image: this model was shown event frames"),
        )
    else:
        frames, media = [], "text"
    return Loaded(frames=frames, media=media, media_sha256=shown_sha256(sample, pick), question=question)


def shown_sha256(sample: Sample, pick: Pick) -> str:
    """Hash of what ``load_frames`` shows: the files' bytes and how they become frames; empty for text alone."""
    how = pick.__name__
    if sample.image is not None:
        return media_sha256((sample.image,), "image")
    if sample.video is not None:
        return media_sha256((sample.video,), how)
    if sample.video_frames is not None:
        files = sample.video_files
        return media_sha256([files[i] for i in pick(len(files))], how)
    if sample.has_events:
        return hashlib.sha256(f"{event_frames_sha256(sample)} {how}".encode()).hexdigest()
    return ""


def load_event_frames(sample: Sample) -> Loaded:
    """Stage 1 of event frames: ``event_image`` if the sample has it, else ``event_data``, rasterised here."""
    num_events, notes = None, tuple[str, ...]()
    if sample.frames:
        frames, media = list(sample.frames), "frames"
    elif sample.event_image:
        frames, media = [read_image(path) for path in sample.event_image], "event_image"
    else:
        assert sample.event_data is not None
        with span("read"):
            stream = read_events(sample.event_data, window=sample.window)
        with span("rasterise"):
            frames, media = list(event_frames(stream, EVENT_FRAMES)), "event_data"
        num_events, notes = len(stream), _length_note(stream.duration_us)
    return Loaded(
        frames=frames,
        media=media,
        media_sha256=event_frames_sha256(sample),
        question=clean_question(sample.question),
        num_events=num_events,
        notes=notes,
    )


def event_frames_sha256(sample: Sample) -> str:
    """Hash of what ``load_event_frames`` shows."""
    if sample.frames:
        return frames_sha256(sample.frames)
    if sample.event_image:
        return media_sha256(sample.event_image, "image files")
    assert sample.event_data is not None
    return media_sha256((sample.event_data,), f"{EVENT_FRAMES} equal-count frames", sample.window)


def _length_note(duration_us: int) -> tuple[str, ...]:
    if duration_us < _PUBLISHED_LIMIT_US:
        return ()
    return (f"{duration_us / 1e3:.0f} ms of events; EventGPT's published code refuses 100 ms and more",)
