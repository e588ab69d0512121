"""Two scenes in files of equal names and sizes: which file ``load`` returns the frames of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unfuse.adapters.media import load_event_frames
from unfuse.samples import Sample
from unfuse.samples.variants import SampleFiles, equal_frames, in_reverse, inverted, stream_of, with_other_polarity
from unfuse.stages import Loaded

if TYPE_CHECKING:
    from unfuse.verification.checks import Subject


def file_faults(s: Subject, loaded: Loaded, folder: Path) -> Iterator[str]:
    """Yield the files whose frames ``load`` does not return.

    Two folders hold a file of one name each, the first and the second scene. Then the second scene's bytes replace the
    first one's at the first path.

    Args:
        s: the first scene, of any media.
        loaded: its frames.
        folder: an empty folder.
    """
    files = SampleFiles(folder)
    one, two = files.new_folder(), files.new_folder()
    if s.sample.event_data is not None and loaded.media == "event_data":
        stream = stream_of(s.sample)
        other = with_other_polarity(stream)
        scenes = [files.recording(s.sample, stream, folder=one), files.recording(s.sample, other, folder=two)]
        yield from _apart(s, loaded, scenes)
        yield from _events(s, files.recording(s.sample, in_reverse(stream)), "events in reverse order")
        yield from _events(s, files.recording(s.sample, other, folder=one), "a recording at the path of another one")
    else:
        as_video = s.model.adapter.takes != "events"
        frames = inverted(loaded.frames)
        scenes = [
            files.pictures(s.sample, loaded.frames, as_video=as_video, folder=one),
            files.pictures(s.sample, frames, as_video=as_video, folder=two),
        ]
        yield from _apart(s, loaded, scenes)
        replaced = files.pictures(s.sample, frames, as_video=as_video, folder=one)
        if not equal_frames(s.model.load(replaced).frames, frames):
            yield "load: not the frames of pictures at the paths of other ones"
    if s.sample.files and not equal_frames(s.model.load(files.copy(s.sample)).frames, loaded.frames):
        yield "load: other frames of equal bytes at a new path"


def _apart(s: Subject, loaded: Loaded, scenes: Sequence[Sample]) -> Iterator[str]:
    """Yield whether two files of one name have each other's frames."""
    first, second, again = (s.model.load(scenes[index]).frames for index in (0, 1, 0))
    if not equal_frames(first, loaded.frames):
        yield "load: other frames of equal content in another file"
    if any(equal_frames([a], [b]) for a, b in zip(first, second, strict=False)):
        yield "load: frames of a file of the same name in another folder"
    if not equal_frames(first, again):
        yield "load: other frames of a file after one of the same name"


def _events(s: Subject, sample: Sample, name: str) -> Iterator[str]:
    """Compare with the frames as EventGPT draws them."""
    if s.model.adapter.takes == "events" and not equal_frames(
        s.model.load(sample).frames, load_event_frames(sample).frames
    ):
        yield f"load: not the frames of {name}"
