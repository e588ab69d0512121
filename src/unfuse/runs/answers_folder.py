"""The folder of ``unfuse run``: ``run.json``, ``answers.jsonl``, and ``summary.json`` once it has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unfuse.errors import RunFolderError
from unfuse.runs.answers_file import (
    ANSWERS_FILE,
    AnswerRecord,
    AnswersWriter,
    SoundAnswers,
    sound_answers,
    take_out_failed,
)
from unfuse.runs.atomic import write_json_atomic
from unfuse.runs.beginning import begun, require_same
from unfuse.runs.lock import FolderLock
from unfuse.runs.manifest import read_manifest, write_manifest
from unfuse.runs.place import SUMMARY_FILE, take_away
from unfuse.runs.schema import Manifest


class AnswersFolder:
    """One run that is being written. Made by ``create`` or ``resume``; a context manager.

    Leaving the ``with`` block by an error before the first answer takes a folder away that ``create`` made.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        lock: FolderLock,
        writer: AnswersWriter,
        done: frozenset[str] = frozenset(),
        failed: frozenset[str] = frozenset(),
    ):
        """For the two class methods."""
        self.path = path
        self.manifest = manifest
        self.done = done
        """Ids that were answered when it was opened."""
        self.failed = failed
        """Ids that had a line which said why there is no answer: it was taken out, and they may be asked again."""
        self._lock = lock
        self._writer = writer
        self._seen = set(done)
        self._made: list[Path] = []

    @classmethod
    def create(cls, path: Path, manifest: Manifest, on_safe: Callable[[AnswerRecord], None] | None = None) -> Self:
        """Starts a run in a folder that does not exist yet or is empty.

        Args:
            path: the folder.
            manifest: of the run.
            on_safe: as for ``AnswersWriter``.

        Raises:
            RunFolderError: the folder holds a run or anything else, or cannot be made; nothing is left then.
        """
        with begun(path.absolute(), manifest, ANSWERS_FILE) as beginning:
            writer = AnswersWriter(beginning.path / ANSWERS_FILE, sound_bytes=0, on_safe=on_safe)
        folder = cls(beginning.path, manifest, beginning.lock, writer)
        folder._made = beginning.made
        return folder

    @classmethod
    def resume(
        cls,
        path: Path,
        manifest: Manifest,
        on_safe: Callable[[AnswerRecord], None] | None = None,
        *,
        media_bytes: Mapping[str, int],
    ) -> Self:
        """Continues a run: cuts off a torn tail, keeps every answer, and takes failures out.

        Args:
            path: the folder.
            manifest: of the run.
            on_safe: as for ``AnswersWriter``.
            media_bytes: size of each sample's files now.

        Raises:
            RunFolderError: no such run, a damaged one, another process writes to it, ``manifest`` is another run's, or
                files have changed since they were answered about.
        """
        path = path.absolute()
        recorded = read_manifest(path)
        lock = FolderLock(path)
        try:
            require_same(path, recorded, manifest)
            found = sound_answers(path / ANSWERS_FILE)
            _require_unchanged(path, found, media_bytes)
            continued = replace(recorded, resumed=(*recorded.resumed, manifest.created))
            write_manifest(path, continued)
            sound = take_out_failed(path / ANSWERS_FILE, found)
            writer = AnswersWriter(path / ANSWERS_FILE, sound_bytes=sound, on_safe=on_safe)
        except BaseException:
            lock.close()
            raise
        return cls(path, continued, lock, writer, frozenset(found.answered), frozenset(found.failed))

    @property
    def busy_s(self) -> float:
        """Seconds spent writing answers so far."""
        return self._writer.busy_s

    def append(self, record: AnswerRecord) -> None:
        """Hands over one answer.

        Raises:
            RunFolderError: its id has one already, or an earlier one could not be written.
        """
        if record.sample_id in self._seen:
            raise RunFolderError(
                f"run folder {self.path}", found=f"sample {record.sample_id!r} again", expected="one answer a sample"
            )
        self._seen.add(record.sample_id)
        self._writer.append(record)
        self._made.clear()

    def settle(self) -> None:
        """Returns when all answers are on the disk; no more may follow.

        Raises:
            RunFolderError: one could not be written.
        """
        self._writer.close()

    @property
    def ended(self) -> bool:
        """Whether the run came to its summary."""
        return (self.path / SUMMARY_FILE).is_file()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes ``summary.json`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_json_atomic(self.path / SUMMARY_FILE, summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
        finally:
            if error is not None and self._made:
                take_away(*self._made)
            self._lock.close()


def _require_unchanged(path: Path, found: SoundAnswers, now: Mapping[str, int]) -> None:
    for name, then in found.answered.items():
        if then is not None and name in now and now[name] != then:
            raise RunFolderError(
                f"run folder {path}",
                found=f"sample {name!r} with {now[name]} bytes of files",
                expected=f"the {then} bytes that were answered about",
                fix="give another --output",
            )
