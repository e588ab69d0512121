"""Read the EventGPT instruction set: a folder with one JSON file and its media below.

    EventGPT_Instruction_Subset.json   rows {id, event_data, event_image, video_data, mp4_data, conversations}
    event_npy/  event_image/  video/  mp4/

All rows are checked before a model is loaded; the error of a defect names the row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from unfuse.errors import DatasetError, InputError, MediaError
from unfuse.events import EventStream, read_events
from unfuse.samples.chat import read_chat
from unfuse.samples.file_hash import file_sha256
from unfuse.samples.media import read_image
from unfuse.samples.media_folder import MediaFolder
from unfuse.samples.question import clean_question
from unfuse.samples.sample import Sample
from unfuse.samples.text_file import read_text
from unfuse.samples.video import check_video, count_frames

MANIFEST_NAME: Final = "EventGPT_Instruction_Subset.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Samples in the order of their rows."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions about the chats of the rows, each with its number of rows, such as rows of the default question."""
        return _counted([sample.notes for sample in self.samples])

    def sha256(self) -> str:
        """Return the hash of every file used, the ids, the questions and the reference answers."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.sample_id}\0{sample.question}\0{sample.reference or ''}\0".encode())
            for path in sample.files:
                digest.update(file_sha256(path).encode())
        return digest.hexdigest()

    def check_media(self, *, events: bool = True, video: bool = False) -> tuple[str, ...]:
        """Read every medium that a run will read, once, and return the readers' decisions, each once.

        Args:
            events: for models with event input.
            video: for models with video or image input, if a sample has them.

        Raises:
            InputError: the first defect, and the number of defects.
        """
        defects: list[InputError] = []
        notes: dict[str, None] = {}
        for sample in self.samples:
            try:
                notes |= dict.fromkeys(_check(sample, events=events, video=video))
            except InputError as error:
                defects.append(error)
        if len(defects) == 1:
            raise defects[0]
        if defects:
            raise DatasetError(f"{defects[0]} (the first of {len(defects)} defects in {self.name})")
        return tuple(notes)


def read_dataset(folder: str | Path, *, max_samples: int | None = None) -> Dataset:
    """Read the rows of a dataset folder.

    Args:
        folder: holds ``EventGPT_Instruction_Subset.json``.
        max_samples: number of rows to read, from the first.

    Raises:
        DatasetError: no such folder or JSON, malformed rows, a row without media.
        PromptError: a question with special tokens.
    """
    root = Path(folder)
    rows = read_rows(root)
    chosen = rows if max_samples is None else rows[:max_samples]
    if not chosen:
        raise DatasetError(str(root / MANIFEST_NAME), found="no rows", expected="at least one")
    seen: dict[str, int] = {}
    media = _Media(root)
    samples = [_sample(media, row, index, seen) for index, row in enumerate(chosen)]
    return Dataset(name=str(root), samples=tuple(samples))


def read_rows(root: Path) -> list[Any]:
    """Return the JSON's rows unchecked.

    Raises:
        DatasetError: no such folder or JSON, or not a list.
    """
    manifest = root / MANIFEST_NAME
    if not root.is_dir():
        raise DatasetError(str(root), found="no such folder", expected=f"a dataset folder with {MANIFEST_NAME}")
    if not manifest.is_file():
        raise DatasetError(str(root), found=f"no {MANIFEST_NAME}", expected="the instruction-set layout")
    try:
        rows = json.loads(read_text(manifest))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(str(manifest), found=f"malformed JSON ({error})", expected="a list of rows") from None
    if not isinstance(rows, list):
        raise DatasetError(str(manifest), found=type(rows).__name__, expected="a list of rows")
    return rows


def find_defects(folder: str | Path, done: Callable[[int], None] = lambda number: None) -> list[InputError]:
    """Find every defect of a folder: rows, missing or damaged media of every kind, repeated ids.

    Args:
        folder: holds ``EventGPT_Instruction_Subset.json``.
        done: called with the number of rows checked.

    Raises:
        DatasetError: no such folder or JSON, or not a list.
    """
    root = Path(folder)
    defects: list[InputError] = []
    seen: dict[str, int] = {}
    media = _Media(root)
    for index, row in enumerate(read_rows(root)):
        try:
            sample = _sample(media, row, index, seen)
        except InputError as error:
            defects.append(error)
        else:
            if isinstance(row, dict) and sample.sample_id != str(row.get("id", index)):
                where = f"{root / MANIFEST_NAME} row {index} id"
                defects.append(DatasetError(where, found=f"{row.get('id')!r} again", expected="each once"))
            defects += _defects(sample)
        done(index + 1)
    if not seen and not defects:
        defects.append(DatasetError(str(root / MANIFEST_NAME), found="no rows", expected="at least one"))
    return defects


def chat_notes(folder: str | Path) -> tuple[str, ...]:
    """Return ``Dataset.notes`` of the rows whose chat can be read.

    Raises:
        DatasetError: no such folder or JSON, or not a list.
    """
    notes: list[tuple[str, ...]] = []
    for index, row in enumerate(read_rows(Path(folder))):
        with suppress(DatasetError):
            notes.append(read_chat(row, f"row {index}").notes if isinstance(row, dict) else ())
    return _counted(notes)


def _counted(notes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    counts = Counter(note for of_row in notes for note in of_row)
    return tuple(f"{count} of {len(notes)} rows have {note}" for note, count in sorted(counts.items()))


def _defects(sample: Sample) -> Iterator[InputError]:
    """Yield the defects of every medium, including media that no model reads if there is a better one."""
    checks: list[Callable[[], object]] = []
    if sample.event_data is not None:
        checks.append(partial(_read_events, sample))
    checks += [partial(read_image, path) for path in (*sample.event_image, *sample.video_files)]
    if sample.video is not None:
        checks.append(partial(count_frames, sample.video))
    if sample.video_frames is not None and not sample.video_files:
        yield MediaError(str(sample.video_frames), found="no pictures", expected="a folder of PNG or JPEG frames")
    for check in checks:
        try:
            check()
        except InputError as error:
            yield error


class _Media:
    """The folders of a dataset."""

    def __init__(self, root: Path):
        self.manifest = root / MANIFEST_NAME
        self.events, self.images = MediaFolder(root / "event_npy"), MediaFolder(root / "event_image")
        self.videos, self.stills = MediaFolder(root / "mp4"), MediaFolder(root / "video")


def _sample(media: _Media, row: Any, index: int, seen: dict[str, int]) -> Sample:
    where = f"{media.manifest} row {index}"
    if not isinstance(row, dict):
        raise DatasetError(where, found=type(row).__name__, expected="an object")
    sample_id = _unique(str(row.get("id", index)), seen)
    event_data = media.events.path(row.get("event_data"), f"{where} event_data")
    images = _text_list(row.get("event_image"), f"{where} event_image")
    event_image = tuple(p for p in (media.images.path(i, f"{where} event_image") for i in images) if p)
    video = media.videos.path(row.get("mp4_data"), f"{where} mp4_data")
    video_frames = media.stills.path(row.get("video_data"), f"{where} video_data")
    if not (event_data or event_image or video or video_frames):
        raise DatasetError(where, found="no media", expected="event_image, event_data, mp4_data or video_data")
    chat = read_chat(row, where)
    return Sample(
        sample_id=sample_id,
        question=clean_question(chat.question),
        event_data=event_data,
        event_image=event_image,
        video=video,
        video_frames=video_frames,
        reference=chat.reference,
        notes=chat.notes,
    )


def _unique(sample_id: str, seen: dict[str, int]) -> str:
    seen[sample_id] = seen.get(sample_id, 0) + 1
    if seen[sample_id] == 1:
        return sample_id
    return _unique(f"{sample_id}#{seen[sample_id]}", seen)


def _text_list(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise DatasetError(where, found=type(value).__name__, expected="a list of file names")
    return value


def _read_events(sample: Sample) -> EventStream:
    assert sample.event_data is not None
    return read_events(sample.event_data, window=sample.window, time_unit=sample.time_unit)


def _check(sample: Sample, *, events: bool, video: bool) -> tuple[str, ...]:
    seen = False
    notes: tuple[str, ...] = ()
    if video and sample.image is not None:
        read_image(sample.image)
        seen = True
    elif video and sample.video is not None:
        check_video(sample.video)
        seen = True
    elif video and sample.video_frames is not None:
        if not sample.video_files:
            raise MediaError(str(sample.video_frames), found="no pictures", expected="a folder of PNG or JPEG frames")
        for path in sample.video_files:
            read_image(path)
        seen = True
    if events and not sample.has_events:
        raise MediaError(f"sample {sample.sample_id}", found="no events", expected="event_image or event_data")
    if events or not seen:
        if sample.event_data is not None and not sample.event_image:
            notes = _read_events(sample).notes
        for path in sample.event_image:
            read_image(path)
    return notes
