"""``answers.jsonl``: one line an answer, in the order of their ends, synchronised to the disk in groups.

An answer is reported by ``on_safe`` once it is on the disk. One ``fsync`` a line would take longer than some answers,
so lines that arrive during an ``fsync`` are written together. A killed process loses only answers that it had not
reported, and may leave one torn line; readers skip it and a resumed run cuts it off.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unfuse.errors import RunFolderError
from unfuse.records.atomic import cannot_write, write_chunks_atomic
from unfuse.records.conversion import from_plain, to_plain
from unfuse.records.inputs import RecordedInput
from unfuse.records.lines import open_for_append, read_lines, sealed
from unfuse.records.schema import Status

ANSWERS_FILE: Final = "answers.jsonl"
COMMIT_SECONDS: Final = 0.2
"""Longest wait of an answer for others before the group is synchronised to the disk."""
_MAX_PENDING: Final = 4096
"""Answers that may wait for a slow disk before ``append`` blocks."""
_CONTENT: Final = "the answers of a run"


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRecord:
    """One line of ``answers.jsonl``."""

    sample_id: str
    status: Status
    error: str | None = None
    question: str
    text: str | None = None
    """None where the answer failed, as the following fields."""
    token_ids: tuple[int, ...] | None = None
    """New tokens, the end token included where the model wrote it."""
    stop_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reused_prefix_tokens: int | None = None
    features_kept: bool | None = None
    """Whether the scene's features came from the store."""
    media_sha256: str | None = None
    media_bytes: int | None = None
    """Size of the sample's files when its run was started or resumed."""
    finished_unix_s: float = 0.0
    """End of the answer, in seconds since 1970."""


def read_answers(path: Path) -> Iterator[AnswerRecord]:
    """Yield every whole line.

    Raises:
        RunFolderError: the file cannot be read, or a line before the last is damaged; has its number.
    """
    for line in read_lines(path, expected=_CONTENT):
        yield from_plain(AnswerRecord, line.fields(), where=line.where)


@dataclass(frozen=True, slots=True)
class SoundAnswers:
    """Content of an answers file up to its last whole line."""

    answered: Mapping[str, RecordedInput]
    """Inputs of the answers by ID."""
    failed: Mapping[str, int]
    """Ids with a failure in their line, and the offset of that line."""
    num_bytes: int


def sound_answers(path: Path) -> SoundAnswers:
    """Read the ids that have a line, and the outcome of each.

    Raises:
        RunFolderError: as ``read_answers``; or an id has two lines.
    """
    answered: dict[str, RecordedInput] = {}
    failed: dict[str, int] = {}
    num_bytes = 0
    for line in read_lines(path, expected=_CONTENT):
        fields = line.fields()
        name = str(fields["sample_id"])
        if name in answered or name in failed:
            raise RunFolderError(line.where, found=f"sample {name!r} again", expected="one line per sample")
        if fields["status"] == "failed":
            failed[name] = line.start
        else:
            answered[name] = RecordedInput(question=fields["question"], media_sha256=fields.get("media_sha256"))
        num_bytes = line.end
    return SoundAnswers(answered, failed, num_bytes)


def remove_failed(path: Path, sound: SoundAnswers) -> int:
    """Remove the lines of failures, so that their samples can be answered; the file is the old one or the new one.

    Args:
        path: the file; nobody may write to it meanwhile.
        sound: its content.

    Returns:
        Bytes of the file up to the last whole line.

    Raises:
        RunFolderError: the file cannot be written; it is as before then.
    """
    if not sound.failed:
        return sound.num_bytes
    starts = frozenset(sound.failed.values())

    def answers() -> Iterator[bytes]:
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if offset < sound.num_bytes and offset not in starts:
                    yield line
                offset += len(line)

    write_chunks_atomic(path, answers())
    return path.stat().st_size


class AnswersWriter:
    """Appends answers from a thread of its own. One writer at a time: the caller holds the folder's lock."""

    def __init__(self, path: Path, *, sound_bytes: int, on_safe: Callable[[AnswerRecord], None] | None = None):
        """Open an existing file, and cut off all bytes after ``sound_bytes``.

        Args:
            path: the file.
            sound_bytes: length to keep.
            on_safe: called with every answer once it is on the disk, by the writer's thread. Its exception ends the
                writer, and is raised again by ``append`` and ``close``.

        Raises:
            RunFolderError: the file cannot be opened or cut.
        """
        self._path = path
        self._on_safe = on_safe
        self._pending: queue.Queue[AnswerRecord | None] = queue.Queue(_MAX_PENDING)
        self._failure: BaseException | None = None
        self.busy_s = 0.0
        """Seconds spent writing and waiting for the disk."""
        self._descriptor = open_for_append(path, size=sound_bytes)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def append(self, record: AnswerRecord) -> None:
        """Hand over one answer.

        Raises:
            RunFolderError: an earlier one could not be written.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            with suppress(queue.Full):
                self._pending.put(record, timeout=1.0)
                return

    def close(self) -> None:
        """Return when all is on the disk.

        Raises:
            RunFolderError: an answer could not be written.
        """
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._pending.put(None, timeout=0.1)
                self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            ended = False
            while not ended:
                records, ended = self._gather()
                started = time.perf_counter()
                self._write(records)
                self.busy_s += time.perf_counter() - started
                if self._on_safe is not None:
                    for record in records:
                        self._on_safe(record)
        except BaseException as error:  # noqa: BLE001 - raised again by append and close
            self._failure = error
        finally:
            os.close(self._descriptor)

    def _gather(self) -> tuple[list[AnswerRecord], bool]:
        """Return at least one answer with those that follow soon after it, and whether the writer was closed."""
        record = self._pending.get()
        records: list[AnswerRecord] = []
        deadline = time.monotonic() + COMMIT_SECONDS
        while record is not None:
            records.append(record)
            if len(records) == _MAX_PENDING:
                return records, False
            try:
                record = self._pending.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return records, False
        return records, True

    def _write(self, records: list[AnswerRecord]) -> None:
        data = b"".join(
            sealed(to_plain(record, where=f"answer of {record.sample_id!r}")).encode("ascii") + b"\n"
            for record in records
        )
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise cannot_write(self._path, error) from error
