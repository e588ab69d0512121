"""Every sample as a row: what was shown, asked and answered, and what it took."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unfuse.report.html.looks import Look
from unfuse.report.reading import ReportRun
from unfuse.runs.frames import MAX_FRAMES
from unfuse.runs.schema import RECORD_STAGES, SampleRecord

_MAX_PICTURES: Final = 9 * 2**20
"""Characters that pictures may take of the page: with the charts it stays under 15 MiB."""
_MEDIA: Final = {
    "event_data": "event frames",
    "event_image": "event frames",
    "frames": "event frames",
    "video": "video frames",
    "video_frames": "video frames",
    "image": "picture",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A strip, once for all samples that share it."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A number as it is shown and as it is sorted by."""

    text: str
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """One sample of one run."""

    look: Look
    sample_id: str
    failed: bool
    picture: str | None
    """Its key among the pictures."""
    shown: str
    """What the picture shows, in words."""
    question: str
    answer: str
    """The error of a failed sample."""
    reference: str | None
    numbers: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """All rows, the names of their numbers, and the pictures they refer to."""

    columns: tuple[str, ...]
    rows: tuple[SampleRow, ...]
    pictures: dict[str, Picture]
    left_out: str | None
    """Why pictures are missing."""


def sample_table(runs: Sequence[tuple[Look, ReportRun]]) -> SampleTable:
    """Every measured or failed sample of every run; warm-up repeats are no samples."""
    chosen = [(look, run, record) for look, run in runs for record in run.part.records if not record.warmup]
    stages = [stage for stage in RECORD_STAGES if any(stage in record.stages for *_, record in chosen)]
    pictures: dict[str, Picture] = {}
    absent = over = used = 0
    rows = []
    for look, run, record in chosen:
        media = record.media_sha256
        if media is not None and media not in pictures and run.frames is not None:
            strip = run.frames.read(media)
            if strip is not None:
                uri = "data:image/webp;base64," + base64.b64encode(strip.data).decode()
                if used + len(uri) <= _MAX_PICTURES:
                    pictures[media] = Picture(uri=uri, width=strip.width, height=strip.height)
                    used += len(uri)
                else:
                    over += 1
        known = media if media in pictures else None
        absent += known is None
        rows.append(_row(look, record, known, stages))
    left_out = None
    if over:
        left_out = f"Pictures of {absent} rows are left out to keep this file small."
    elif absent:
        left_out = f"No pictures were kept of what {absent} of {len(rows)} rows were shown."
    return SampleTable(
        columns=("tokens", *(f"{stage.replace('_', ' ')} ms" for stage in stages), "sum ms", "end to end ms"),
        rows=tuple(rows),
        pictures=pictures,
        left_out=left_out,
    )


def _row(look: Look, record: SampleRecord, picture: str | None, stages: Sequence[str]) -> SampleRow:
    times = [record.stages[stage].host_ms if stage in record.stages else None for stage in stages]
    total = record.total_host_ms if record.stages else None
    tokens = record.output_tokens
    return SampleRow(
        look=look,
        sample_id=record.sample_id,
        failed=record.status == "failed",
        picture=picture,
        shown=_shown(record),
        question=record.question or "",
        answer=(record.error or "unknown") if record.status == "failed" else (record.text or ""),
        reference=record.reference,
        numbers=(
            Cell(text="-" if tokens is None else str(tokens), value=tokens),
            *(Cell(text="-" if ms is None else f"{ms:.2f}", value=ms) for ms in (*times, total, record.e2e_host_ms)),
        ),
    )


def _shown(record: SampleRecord) -> str:
    what = _MEDIA.get(record.media or "", "frames")
    count = record.num_frames or 0
    if count <= 1:
        return f"{what.removesuffix('s') if count else 'no frames'} of {record.sample_id}"
    drawn = f"{MAX_FRAMES} of {count}" if count > MAX_FRAMES else str(count)
    return f"{drawn} {what} of {record.sample_id}, the earliest on the left"
