"""What a model that wants camera frames is shown of a sample.

Its image, else frames of its video file, else of its folder of video frames. A row of events alone gives such a model
its event frames, and a note says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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
        sha256 = media_sha256((sample.image,), "image")
        return Loaded(frames=[read_image(sample.image)], media="image", media_sha256=sha256, question=question)
    how = pick.__name__
    if sample.video is not None:
        indices = pick(count_frames(sample.video))
        frames = read_frames(sample.video, indices)
        return Loaded(frames=frames, media="video", media_sha256=media_sha256((sample.video,), how), question=question)
    if sample.video_frames is not None:
        paths = [sample.video_files[i] for i in pick(len(sample.video_files))]
        frames = [read_image(path) for path in paths]
        sha256 = media_sha256(paths, how)
        return Loaded(frames=frames, media="video_frames", media_sha256=sha256, question=question)
    if sample.has_events:
        scene = load_event_frames(sample)
        chosen = [scene.frames[i] for i in pick(len(scene.frames))]
        note = "no video or image: this model was shown event frames"
        return Loaded(
            frames=chosen,
            media=scene.media,
            media_sha256=hashlib.sha256(f"{scene.media_sha256} {how}".encode()).hexdigest(),
            question=question,
            num_events=scene.num_events,
            notes=(*scene.notes, note),
        )
    return Loaded(frames=[], media="text", media_sha256="", question=question)


def load_event_frames(sample: Sample) -> Loaded:
    """Stage 1 of event frames: ``event_image`` if the sample has it, else ``event_data``, rasterised here."""
    question = clean_question(sample.question)
    if sample.frames:
        sha256 = frames_sha256(sample.frames)
        return Loaded(frames=list(sample.frames), media="frames", media_sha256=sha256, question=question)
    if sample.event_image:
        frames = [read_image(path) for path in sample.event_image]
        sha256 = media_sha256(sample.event_image, "image files")
        return Loaded(frames=frames, media="event_image", media_sha256=sha256, question=question)
    assert sample.event_data is not None
    with span("read"):
        stream = read_events(sample.event_data, window=sample.window)
    with span("rasterise"):
        frames = list(event_frames(stream, EVENT_FRAMES))
    return Loaded(
        frames=frames,
        media="event_data",
        media_sha256=media_sha256((sample.event_data,), f"{EVENT_FRAMES} equal-count frames", sample.window),
        question=question,
        num_events=len(stream),
        notes=_length_note(stream.duration_us),
    )


def _length_note(duration_us: int) -> tuple[str, ...]:
    if duration_us < _PUBLISHED_LIMIT_US:
        return ()
    return (f"{duration_us / 1e3:.0f} ms of events; EventGPT's published code refuses 100 ms and more",)
