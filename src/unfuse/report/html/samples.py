"""Every sample as a row: frames, question, answer and times."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unfuse.records.frames import MAX_FRAMES
from unfuse.records.schema import RECORD_STAGES, SampleRecord
from unfuse.report.html.looks import Look
from unfuse.report.reading import ReportRun

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
class EmbeddedStrip:
    """A strip of frames inside the page, once for all samples that share it."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A number as text, with its value for sorting."""

    text: str
    value: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRow:
    """One sample of one run."""

    look: Look
    sample_id: str
    failed: bool
    picture: str | None
    """Key of its strip among the pictures."""
    description: str
    """Description of the picture."""
    question: str
    answer: str
    """The error of a failed sample."""
    reference: str | None
    numbers: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleList:
    """All rows, the names of their numbers, and the pictures they refer to."""

    columns: tuple[str, ...]
    rows: tuple[SampleRow, ...]
    pictures: dict[str, EmbeddedStrip]
    left_out: str | None
    """Why pictures are missing."""


def sample_list(runs: Sequence[tuple[Look, ReportRun]]) -> SampleList:
    """Return every measured or failed sample of every run; warm-up repeats are no samples."""
    chosen = [(look, run, record) for look, run in runs for record in run.part.records if not record.warmup]
    stages = [stage for stage in RECORD_STAGES if any(stage in record.stages for *_, record in chosen)]
    strips, full = _embedded_strips([(run, record.media_sha256) for _, run, record in chosen])
    rows = []
    for look, _, record in chosen:
        media = record.media_sha256 if record.media_sha256 in strips else None
        rows.append(_row(look, record, media, stages))
    return SampleList(
        columns=("tokens", *(f"{stage.replace('_', ' ')} ms" for stage in stages), "sum ms", "end to end ms"),
        rows=tuple(rows),
        pictures=strips,
        left_out=_left_out(sum(row.picture is None for row in rows), len(rows), full=full),
    )


def _embedded_strips(media: Sequence[tuple[ReportRun, str | None]]) -> tuple[dict[str, EmbeddedStrip], bool]:
    """Return the strips that fit into the page, by media, and whether any did not fit."""
    strips: dict[str, EmbeddedStrip] = {}
    size, full = 0, False
    for run, sha256 in media:
        if sha256 is None or sha256 in strips or run.frames is None:
            continue
        strip = run.frames.read(sha256)
        if strip is None:
            continue
        uri = "data:image/webp;base64," + base64.b64encode(strip.data).decode()
        if size + len(uri) > _MAX_PICTURES:
            full = True
            continue
        strips[sha256] = EmbeddedStrip(uri=uri, width=strip.width, height=strip.height)
        size += len(uri)
    return strips, full


def _left_out(absent: int, rows: int, *, full: bool) -> str | None:
    """Return why pictures are missing."""
    if full:
        return f"Pictures of {absent} rows are left out to keep this file small."
    return f"The run holds no pictures for {absent} of {rows} rows." if absent else None


def _row(look: Look, record: SampleRecord, picture: str | None, stages: Sequence[str]) -> SampleRow:
    times = [record.stages[stage].host_ms if stage in record.stages else None for stage in stages]
    total = record.total_host_ms if record.stages else None
    tokens = record.output_tokens
    return SampleRow(
        look=look,
        sample_id=record.sample_id,
        failed=record.status == "failed",
        picture=picture,
        description=_description(record),
        question=record.question or "",
        answer=(record.error or "unknown") if record.status == "failed" else (record.text or ""),
        reference=record.reference,
        numbers=(
            Cell(text="-" if tokens is None else str(tokens), value=tokens),
            *(Cell(text="-" if ms is None else f"{ms:.2f}", value=ms) for ms in (*times, total, record.e2e_host_ms)),
        ),
    )


def _description(record: SampleRecord) -> str:
    what = _MEDIA.get(record.media or "", "frames")
    count = record.num_frames or 0
    if count <= 1:
        return f"{what.removesuffix('s') if count else 'no frames'} of {record.sample_id}"
    drawn = f"{MAX_FRAMES} of {count}" if count > MAX_FRAMES else str(count)
    return f"{drawn} {what} of {record.sample_id}, the earliest on the left"
