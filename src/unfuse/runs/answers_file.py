"""``answers.jsonl``: one line an answer, in whatever order they end, appended in groups that are made durable at once.

An answer counts once ``on_safe`` was called with it: it is then on the disk. Waiting for the disk once a line would
cost more than some answers do; so lines that come while the disk is at work wait for each other. A killed process loses
only what it had not reported, and may leave one torn line, which reading passes over and resuming cuts off.
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
from unfuse.runs.atomic import cannot_write, write_chunks_atomic
from unfuse.runs.lines import is_whole, sealed, unsealed
from unfuse.runs.plain import from_plain, to_plain
from unfuse.runs.schema import Status

ANSWERS_FILE: Final = "answers.jsonl"
COMMIT_SECONDS: Final = 0.2
"""Longest that an answer waits for others before the disk is asked to keep it."""
_MOST_WAITING: Final = 4096
"""Answers that may wait for a slow disk before who makes them has to wait too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRecord:
    """One line."""

    sample_id: str
    status: Status
    error: str | None = None
    question: str
    text: str | None = None
    """None where it failed, as what follows it."""
    token_ids: tuple[int, ...] | None = None
    """The new tokens, the end token included where the model wrote it."""
    stop_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    reused_prefix_tokens: int | None = None
    features_kept: bool | None = None
    """Whether the scene's features came out of the store."""
    media_sha256: str | None = None
    media_bytes: int | None = None
    """Size of the sample's files when its run began or was continued."""
    finished_unix_s: float = 0.0
    """When, in seconds since 1970."""


def read_answers(path: Path) -> Iterator[AnswerRecord]:
    """Every whole line, one at a time.

    Raises:
        RunFolderError: the file cannot be read, or a line before the last is damaged; has its number.
    """
    for number, line, _ in _lines(path):
        fields = unsealed(line, where=f"{path} line {number}")
        yield from_plain(AnswerRecord, fields, where=f"{path} line {number}")


@dataclass(frozen=True, slots=True)
class SoundAnswers:
    """What a file holds up to its last whole line."""

    answered: Mapping[str, int | None]
    """Ids whose line has an answer, with their ``media_bytes``."""
    failed: Mapping[str, int]
    """Ids whose line says why there is none, and the byte where that line begins."""
    num_bytes: int


def sound_answers(path: Path) -> SoundAnswers:
    """What there is, read once.

    Raises:
        RunFolderError: as ``read_answers``; or an id has two lines.
    """
    answered: dict[str, int | None] = {}
    failed: dict[str, int] = {}
    sound = 0
    for number, line, end in _lines(path):
        fields = unsealed(line, where=f"{path} line {number}")
        name = str(fields["sample_id"])
        if name in answered or name in failed:
            raise RunFolderError(f"{path} line {number}", found=f"sample {name!r} again", expected="one line a sample")
        if fields["status"] == "failed":
            failed[name] = sound
        else:
            answered[name] = fields.get("media_bytes")
        sound = end
    return SoundAnswers(answered, failed, sound)


def take_out_failed(path: Path, found: SoundAnswers) -> int:
    """Makes room for other answers in the place of those that failed; the file is the old one or the new one.

    Args:
        path: the file, which nobody writes to.
        found: what it holds.

    Returns:
        Its bytes up to the last whole line.

    Raises:
        RunFolderError: it cannot be written; it is as before then.
    """
    if not found.failed:
        return found.num_bytes
    begins = frozenset(found.failed.values())

    def kept() -> Iterator[bytes]:
        at = 0
        with path.open("rb") as file:
            for line in file:
                if at < found.num_bytes and at not in begins:
                    yield line
                at += len(line)

    write_chunks_atomic(path, kept())
    return path.stat().st_size


def _lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """Number, text and end (in bytes) of every line; a torn last one is passed over."""
    end = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8", "replace").removesuffix("\n")
                if not raw.endswith(b"\n") or (not is_whole(line) and not file.peek(1)):
                    return
                end += len(raw)
                yield number, line, end
    except OSError as error:
        raise RunFolderError(
            str(path), found=f"cannot be read ({error.strerror})", expected="the answers of a run"
        ) from error


class AnswersWriter:
    """Appends answers from a thread of its own. One writer at a time: the caller holds the folder's lock."""

    def __init__(self, path: Path, *, sound_bytes: int, on_safe: Callable[[AnswerRecord], None] | None = None):
        """Opens the file, which must exist, and cuts off what follows ``sound_bytes``.

        Args:
            path: the file.
            sound_bytes: length of what stays.
            on_safe: called with every answer once it is on the disk, by the writer's thread. What it raises ends the
                writer, and is raised where answers are handed over.

        Raises:
            RunFolderError: the file cannot be opened or cut.
        """
        self._path = path
        self._on_safe = on_safe
        self._waiting: queue.Queue[AnswerRecord | None] = queue.Queue(_MOST_WAITING)
        self._failure: BaseException | None = None
        self.busy_s = 0.0
        """Seconds spent writing and waiting for the disk."""
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            try:
                if os.fstat(self._descriptor).st_size != sound_bytes:
                    os.ftruncate(self._descriptor, sound_bytes)
                    os.fsync(self._descriptor)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise cannot_write(path, error) from error
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def append(self, record: AnswerRecord) -> None:
        """Hands over one answer.

        Raises:
            RunFolderError: an earlier one could not be written.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            with suppress(queue.Full):
                self._waiting.put(record, timeout=1.0)
                return

    def close(self) -> None:
        """Returns when all is on the disk.

        Raises:
            RunFolderError: an answer could not be written.
        """
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._waiting.put(None, timeout=0.1)
                self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            ended = False
            while not ended:
                records, ended = self._gather()
                begun = time.perf_counter()
                self._write(records)
                self.busy_s += time.perf_counter() - begun
                if self._on_safe is not None:
                    for record in records:
                        self._on_safe(record)
        except BaseException as error:  # noqa: BLE001 - raised again where answers are handed over
            self._failure = error
        finally:
            os.close(self._descriptor)

    def _gather(self) -> tuple[list[AnswerRecord], bool]:
        """At least one answer, and those that come soon after it; whether there will be no more."""
        record = self._waiting.get()
        records: list[AnswerRecord] = []
        deadline = time.monotonic() + COMMIT_SECONDS
        while record is not None:
            records.append(record)
            if len(records) == _MOST_WAITING:
                return records, False
            try:
                record = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
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
