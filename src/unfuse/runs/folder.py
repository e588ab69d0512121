"""A run as a folder: ``run.json``, ``samples.jsonl``, ``probes.json``, and what is made of them.

A run exists whole from the moment its folder appears. Each sample that ``append`` has returned from is on the disk,
so a killed process loses none that it reported; ``resume`` continues such a run and leaves its lines as they are.
Nothing is overwritten but what is made of them (summary, reports, trace), as whole files. One process writes at a
time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import write_json_atomic, write_text_atomic
from unfuse.runs.beginning import begun, require_same
from unfuse.runs.lock import FolderLock
from unfuse.runs.manifest import MANIFEST_FILE, read_manifest, write_manifest
from unfuse.runs.place import (
    HTML_FILE,
    PROBES_FILE,
    PROFILE_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    TRACE_FILE,
    take_away,
)
from unfuse.runs.plain import from_plain, parse_object
from unfuse.runs.samples_file import SAMPLES_FILE, SamplesRead, SamplesWriter, read_samples
from unfuse.runs.schema import ANSWERS_PROTOCOL, Manifest, Probes, SampleRecord
from unfuse.runs.version import is_newer_minor


class RunFolder:
    """One run on the disk. Made by ``create``, ``resume`` or ``open``; as a context manager it closes itself.

    Leaving the ``with`` block of ``create`` by an error before the first sample takes the folder away again,
    so that a run that never began leaves nothing behind.
    """

    def __init__(self, path: Path, manifest: Manifest, *, lock: FolderLock | None, writer: SamplesWriter | None):
        """For the three class methods."""
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._writer = writer
        self._done: set[str] = set()
        self._made: list[Path] = []
        """Folders to take away if the run never begins, innermost first; emptied by the first sample."""

    @classmethod
    def create(cls, path: str | Path, manifest: Manifest) -> Self:
        """Starts a run in a folder that does not exist yet or is empty.

        The folder is filled under another name and then moved into place, so nobody ever sees half of it.

        Raises:
            RunFolderError: the folder holds a run or anything else, or cannot be made; nothing is left then.
        """
        with begun(Path(path).absolute(), manifest, SAMPLES_FILE) as beginning:
            writer = SamplesWriter(beginning.path / SAMPLES_FILE, sound_bytes=0)
        run = cls(beginning.path, manifest, lock=beginning.lock, writer=writer)
        run._made = beginning.made
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens a run for reading; a writer may be at work on it.

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
        return cls(path, manifest, lock=None, writer=None)

    @classmethod
    def resume(cls, path: str | Path, manifest: Manifest) -> Self:
        """Continues a run that ended early: cuts off a torn tail, keeps every whole line byte for byte.

        Args:
            path: the run's folder.
            manifest: of the process that wants to continue it.

        Raises:
            RunFolderError: the folder holds no run or a damaged one, another process writes to it, or
                ``manifest`` describes another run; every difference is then named.
        """
        path = Path(path).absolute()
        recorded = read_manifest(path)
        lock = FolderLock(path)
        try:
            require_same(path, recorded, manifest)
            read = read_samples(path / SAMPLES_FILE)
            continued = replace(recorded, resumed=(*recorded.resumed, manifest.created))
            write_manifest(path, continued)
            writer = SamplesWriter(path / SAMPLES_FILE, sound_bytes=read.sound_bytes)
        except BaseException:
            lock.close()
            raise
        run = cls(path, continued, lock=lock, writer=writer)
        run._done = {record.sample_id for record in read.records if not record.warmup}
        return run

    @property
    def done_ids(self) -> frozenset[str]:
        """Samples that need not be run (again): measured or failed; a failure is a result, not a gap."""
        if self._writer is None:
            return frozenset(record.sample_id for record in self.records() if not record.warmup)
        return frozenset(self._done)

    def append(self, record: SampleRecord) -> None:
        """Adds one record; when this returns, it is on the disk.

        Raises:
            RunFolderError: opened for reading, a second record of a sample, or the disk refused.
        """
        if self._writer is None:
            raise RunFolderError(f"run folder {self.path}", found="opened for reading", expected="create or resume")
        if record.sample_id in self._done:
            raise RunFolderError(
                f"run folder {self.path}",
                found=f"a record of sample {record.sample_id!r} already",
                expected="one a sample",
            )
        self._writer.append(record)
        self._made.clear()
        if not record.warmup:
            self._done.add(record.sample_id)

    def records(self) -> list[SampleRecord]:
        """Every reported record in order, warm-ups and failures among them; a torn tail is passed over.

        Raises:
            RunFolderError: a line is damaged (with its number), or the file cannot be read.
        """
        return list(self._read().records)

    def torn_bytes(self) -> int:
        """Length of an unreported, cut-off line at the end, in bytes; 0 where the run ended in order."""
        return self._read().torn_bytes

    def _read(self) -> SamplesRead:
        newer = is_newer_minor(self.manifest.schema_version, where=str(self.path / MANIFEST_FILE))
        return read_samples(self.path / SAMPLES_FILE, ignore_unknown=newer)

    def write_probes(self, probes: Probes) -> None:
        """Writes ``probes.json`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_json_atomic(self.path / PROBES_FILE, probes)

    def read_probes(self) -> Probes | None:
        """What ``write_probes`` wrote; None where the run did not come so far.

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

    @property
    def ended(self) -> bool:
        """Whether the run came to its summary."""
        return (self.path / SUMMARY_FILE).is_file()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes ``summary.json`` as a whole.

        Raises:
            RunFolderError: it is not JSON, or cannot be written.
        """
        write_json_atomic(self.path / SUMMARY_FILE, summary)

    def read_summary(self) -> dict[str, Any]:
        """What ``write_summary`` wrote.

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

    def write_report(self, text: str) -> None:
        """Writes ``report.md`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_text_atomic(self.path / REPORT_FILE, text)

    def write_page(self, html: str) -> None:
        """Writes ``report.html`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_text_atomic(self.path / HTML_FILE, html)

    def write_trace(self, text: str) -> None:
        """Writes ``trace.json`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_text_atomic(self.path / TRACE_FILE, text)

    def write_profile(self, text: str) -> None:
        """Writes ``profile.json`` as a whole.

        Raises:
            RunFolderError: it cannot be written.
        """
        write_text_atomic(self.path / PROFILE_FILE, text)

    def close(self) -> None:
        """Closes the samples file and lets the folder go; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._made:
            take_away(*self._made)
        self.close()
