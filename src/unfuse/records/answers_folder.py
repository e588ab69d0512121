"""The folder of ``unfuse run``: ``run.json``, ``answers.jsonl``, and ``summary.json`` once it has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

from unfuse.errors import RunFolderError
from unfuse.records.answers_file import (
    ANSWERS_FILE,
    AnswerRecord,
    AnswersWriter,
    SoundAnswers,
    remove_failed,
    sound_answers,
)
from unfuse.records.inputs import RecordedInput
from unfuse.records.manifest import write_manifest
from unfuse.records.run_dir import FolderLock, OpenFolder, created_folder, resumed_folder, write_start
from unfuse.records.schema import Manifest


class AnswersFolder(OpenFolder):
    """One run that is being written. Made by ``create`` or ``resume``."""

    def __init__(self, path: Path, manifest: Manifest, lock: FolderLock, writer: AnswersWriter):
        """Create the object; use the class methods instead."""
        super().__init__(path, manifest, lock, writer)
        self.done: frozenset[str] = frozenset()
        """Ids that had an answer when the folder was opened."""
        self.failed: frozenset[str] = frozenset()
        """Ids that had a failure in their line: the line was removed, and they may be answered now."""
        self._answers = writer
        self._seen: set[str] = set()

    @classmethod
    def create(cls, path: Path, manifest: Manifest, on_safe: Callable[[AnswerRecord], None] | None = None) -> Self:
        """Start a run in a folder that does not exist yet or is empty.

        Args:
            path: the folder.
            manifest: of the run.
            on_safe: as for ``AnswersWriter``.

        Raises:
            RunFolderError: the folder holds a run or anything else, or cannot be made; nothing is left then.
        """
        path = path.absolute()
        with created_folder(path, partial(write_start, manifest=manifest, lines_file=ANSWERS_FILE)) as (lock, created):
            folder = cls(path, manifest, lock, AnswersWriter(path / ANSWERS_FILE, sound_bytes=0, on_safe=on_safe))
        folder._created = created
        return folder

    @classmethod
    def resume(
        cls,
        path: Path,
        manifest: Manifest,
        on_safe: Callable[[AnswerRecord], None] | None = None,
        *,
        changed_input: Callable[[Mapping[str, RecordedInput]], str | None],
    ) -> Self:
        """Continue a run: cut off a torn line, keep every answer, and remove failures.

        Args:
            path: the folder.
            manifest: of the run.
            on_safe: as for ``AnswersWriter``.
            changed_input: returns a phrase that names the first of the recorded inputs that has changed.

        Raises:
            RunFolderError: no such run, a damaged one, another process writes to it, ``manifest`` is another run's, or
                questions or media have changed since their answer; the first changed input is named.
        """
        path = path.absolute()
        answers = path / ANSWERS_FILE
        found: list[SoundAnswers] = []

        def changed() -> str | None:
            found.append(sound_answers(answers))
            return changed_input(found[0].answered)

        with resumed_folder(path, manifest, changed) as (lock, continued):
            write_manifest(path, continued)
            num_bytes = remove_failed(answers, found[0])
            folder = cls(path, continued, lock, AnswersWriter(answers, sound_bytes=num_bytes, on_safe=on_safe))
        folder.done, folder.failed = frozenset(found[0].answered), frozenset(found[0].failed)
        folder._seen = set(found[0].answered)
        return folder

    @property
    def busy_s(self) -> float:
        """Seconds spent writing answers so far."""
        return self._answers.busy_s

    def append(self, record: AnswerRecord) -> None:
        """Hand over one answer.

        Raises:
            RunFolderError: its id has one already, or an earlier one could not be written.
        """
        if record.sample_id in self._seen:
            raise RunFolderError(
                f"run folder {self.path}", found=f"sample {record.sample_id!r} again", expected="one answer per sample"
            )
        self._seen.add(record.sample_id)
        self._answers.append(record)
        self._created.clear()

    def finish(self) -> None:
        """Return when all answers are on the disk; no more may follow.

        Raises:
            RunFolderError: one could not be written.
        """
        self._answers.close()
