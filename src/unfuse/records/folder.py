"""A run as a folder: ``run.json``, ``samples.jsonl``, ``probes.json``, and the files derived from them.

A run folder appears whole. A sample is on the disk when ``append`` returns, so a killed process loses no sample that
it reported; ``resume`` continues such a run and leaves its lines as they are. Only derived files (summary, reports,
trace) are overwritten, each as a whole. One process writes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from unfuse.errors import RunFolderError
from unfuse.records.atomic import write_json_atomic, write_text_atomic
from unfuse.records.conversion import from_plain, is_newer_minor, parse_object
from unfuse.records.inputs import RecordedInput
from unfuse.records.manifest import MANIFEST_FILE, read_manifest, write_manifest
from unfuse.records.run_dir import (
    HTML_FILE,
    PROBES_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    FolderLock,
    OpenFolder,
    created_folder,
    resumed_folder,
    write_start,
)
from unfuse.records.samples_file import SAMPLES_FILE, SamplesRead, SamplesWriter, read_samples
from unfuse.records.schema import ANSWERS_PROTOCOL, Manifest, Probes, SampleRecord


class RunFolder(OpenFolder):
    """One run on the disk. Made by ``create``, ``resume`` or ``open``."""

    def __init__(self, path: Path, manifest: Manifest, lock: FolderLock | None, writer: SamplesWriter | None):
        """Create the object; use the class methods instead."""
        super().__init__(path, manifest, lock, writer)
        self._samples = writer
        self._done: set[str] = set()

    @classmethod
    def create(cls, path: str | Path, manifest: Manifest) -> Self:
        """Start a run in a folder that does not exist yet or is empty.

        Raises:
            RunFolderError: the folder holds a run or anything else, or cannot be made; nothing is left then.
        """
        path = Path(path).absolute()
        with created_folder(path, partial(write_start, manifest=manifest, lines_file=SAMPLES_FILE)) as (lock, created):
            run = cls(path, manifest, lock, SamplesWriter(path / SAMPLES_FILE, sound_bytes=0))
        run._created = created
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run for reading; a writer may be at work on it.

        Raises:
            RunFolderError: the folder holds no run, or one of another schema.
        """
        path = Path(path).absolute()
        manifest = read_manifest(path)
        if manifest.protocol == ANSWERS_PROTOCOL:
            raise RunFolderError(
                f"run folder {path}",
                found="answers of unfuse run",
                expected="a run of unfuse bench",
                fix="its numbers are in summary.json, its answers in answers.jsonl",
            )
        return cls(path, manifest, None, None)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        manifest: Manifest,
        changed_input: Callable[[Mapping[str, RecordedInput]], str | None] = lambda recorded: None,
    ) -> Self:
        """Continue a run that ended early: cut off a torn line, keep every whole line byte for byte.

        Args:
            path: the run's folder.
            manifest: of the process that continues the run.
            changed_input: returns a phrase that names the first of the recorded inputs that has changed.

        Raises:
            RunFolderError: the folder holds no run or a damaged one, another process writes to it, or
                ``manifest`` or the inputs are of another run; every difference is then named.
        """
        path = Path(path).absolute()

        def changed() -> str | None:
            inputs = {
                record.sample_id: RecordedInput(question=record.question, media_sha256=record.media_sha256)
                for record in read_samples(path / SAMPLES_FILE).records
            }
            return changed_input(inputs)

        with resumed_folder(path, manifest, changed) as (lock, continued):
            read = read_samples(path / SAMPLES_FILE)
            write_manifest(path, continued)
            run = cls(path, continued, lock, SamplesWriter(path / SAMPLES_FILE, sound_bytes=read.sound_bytes))
        run._done = {record.sample_id for record in read.records if not record.warmup}
        return run

    @property
    def done_ids(self) -> frozenset[str]:
        """Samples that have a result; a resumed run skips them. A failure is a result too."""
        if self._samples is None:
            return frozenset(record.sample_id for record in self.records() if not record.warmup)
        return frozenset(self._done)

    def append(self, record: SampleRecord) -> None:
        """Add one record; when this returns, it is on the disk.

        Raises:
            RunFolderError: opened for reading, a second record of a sample, or the disk refused.
        """
        if self._samples is None:
            raise RunFolderError(f"run folder {self.path}", found="opened for reading", expected="create or resume")
        if record.sample_id in self._done:
            raise RunFolderError(
                f"run folder {self.path}",
                found=f"a record of sample {record.sample_id!r} already",
                expected="one line per sample",
            )
        self._samples.append(record)
        self._created.clear()
        if not record.warmup:
            self._done.add(record.sample_id)

    def records(self) -> list[SampleRecord]:
        """Return every reported record in order, warm-ups and failures among them, without a torn line.

        Raises:
            RunFolderError: a line is damaged (with its number), or the file cannot be read.
        """
        return list(self._read().records)

    def torn_bytes(self) -> int:
        """Return the length of a torn, unreported line at the end, in bytes; 0 if there is none."""
        return self._read().torn_bytes

    def _read(self) -> SamplesRead:
        newer = is_newer_minor(self.manifest.schema_version, where=str(self.path / MANIFEST_FILE))
        return read_samples(self.path / SAMPLES_FILE, ignore_unknown=newer)

    def write_probes(self, probes: Probes) -> None:
        """Write ``probes.json`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_json_atomic(self.path / PROBES_FILE, probes)

    def read_probes(self) -> Probes | None:
        """Read ``probes.json``; None if the run ended before its probes.

        Raises:
            RunFolderError: the file is damaged.
        """
        path = self.path / PROBES_FILE
        if not path.is_file():
            return None
        newer = is_newer_minor(self.manifest.schema_version, where=str(path))
        return from_plain(
            Probes, parse_object(path.read_bytes(), where=str(path)), where=str(path), ignore_unknown=newer
        )

    def read_summary(self) -> dict[str, Any]:
        """Read ``summary.json``.

        Raises:
            RunFolderError: there is none (the run did not end), or it is damaged.
        """
        path = self.path / SUMMARY_FILE
        try:
            text = path.read_bytes()
        except OSError as error:
            raise RunFolderError(
                str(path),
                found=f"cannot be read ({error.strerror})",
                expected="the summary of a run that ended",
                fix="finish it with --resume",
            ) from error
        return parse_object(text, where=str(path))

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run, such as ``report.md``, as a whole. Only reports may be readable by others.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_text_atomic(self.path / name, text, private=name not in (REPORT_FILE, HTML_FILE))
