"""Several runs as one folder: ``comparison.json`` names them, each has a run folder of its own inside.

``comparison.json`` has the model and protocol of each part and whether it ended; it is written whole, before the
first part and after each part. A part that has ended is never changed again. An interrupted part is resumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from unfuse.errors import RunFolderError
from unfuse.records.atomic import write_json_atomic, write_text_atomic
from unfuse.records.conversion import read_record, to_plain
from unfuse.records.manifest import COMPARISON_FILE
from unfuse.records.run_dir import HTML_FILE, REPORT_FILE, SUMMARY_FILE, FolderLock, created_folder
from unfuse.records.schema import SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEntry:
    """One part in ``comparison.json``."""

    folder: str
    model: str
    protocol: str
    status: Literal["pending", "ended", "failed"] = "pending"
    error: str | None = None
    refused: bool = False
    """Whether the model cannot be measured this way at all: a finding, not a failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonManifest:
    """``comparison.json``."""

    created: str
    command: tuple[str, ...]
    parts: tuple[PartEntry, ...]
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Options, data, placement and code of all parts: known before any model is loaded."""
    schema_version: str = SCHEMA_VERSION


class ComparisonFolder:
    """Several runs on the disk, with one writer. Made by ``create`` or ``resume``. A context manager."""

    def __init__(self, path: Path, manifest: ComparisonManifest, lock: FolderLock):
        """Create the object; use the class methods instead."""
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @classmethod
    def create(
        cls,
        path: str | Path,
        parts: Sequence[tuple[str, str]],
        *,
        common: Mapping[str, Any],
        created: str,
        command: tuple[str, ...],
    ) -> Self:
        """Start a comparison in a folder that does not exist yet or is empty.

        Args:
            path: the folder.
            parts: (model, protocol), in the order of their runs.
            common: options, data, placement and code of all parts, plain JSON.
            created: ISO-8601, UTC.
            command: the command line.

        Raises:
            RunFolderError: the folder holds anything, or cannot be made.
        """
        path = Path(path).absolute()
        entries = tuple(
            PartEntry(folder=f"{i:02d}-{_slug(model)}-{protocol}", model=model, protocol=protocol)
            for i, (model, protocol) in enumerate(parts, start=1)
        )
        manifest = ComparisonManifest(created=created, command=command, parts=entries, asked=common)
        with created_folder(path, lambda folder: write_json_atomic(folder / COMPARISON_FILE, manifest)) as (lock, _):
            return cls(path, manifest, lock)

    @classmethod
    def resume(cls, path: str | Path, parts: Sequence[tuple[str, str]], *, common: Mapping[str, Any]) -> Self:
        """Continue a comparison that ended early; a failed part is run again.

        Raises:
            RunFolderError: there is none, or one of other models, protocols, options, data, placement or code; every
                difference is named.
        """
        path = Path(path).absolute()
        read_comparison(path)  # before a lock file is made in any folder
        lock = FolderLock(path)
        try:
            return cls(path, _continued(path, parts, common), lock)
        except BaseException:
            lock.close()
            raise

    def run_folder(self, index: int) -> Path:
        """Return the run folder of a part."""
        return self.path / self.manifest.parts[index].folder

    def note(
        self, index: int, status: Literal["ended", "failed"], error: str | None = None, *, refused: bool = False
    ) -> None:
        """Record how a part came out.

        Raises:
            RunFolderError: it cannot be written.
        """
        parts = list(self.manifest.parts)
        parts[index] = replace(parts[index], status=status, error=error, refused=refused)
        self.manifest = replace(self.manifest, parts=tuple(parts))
        self._write()

    def finish(self, summary: dict[str, Any], report: str, page: str) -> None:
        """Write ``summary.json``, ``report.md`` and ``report.html``.

        Raises:
            RunFolderError: they cannot be written.
        """
        write_json_atomic(self.path / SUMMARY_FILE, summary)
        write_text_atomic(self.path / REPORT_FILE, report, private=False)
        write_text_atomic(self.path / HTML_FILE, page, private=False)

    def close(self) -> None:
        """Release the folder; a second call does nothing."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        write_json_atomic(self.path / COMPARISON_FILE, self.manifest)


def _continued(path: Path, parts: Sequence[tuple[str, str]], common: Mapping[str, Any]) -> ComparisonManifest:
    """Return the manifest of a comparison to continue.

    Raises:
        RunFolderError: it is another comparison; every difference is named.
    """
    manifest = read_comparison(path)
    recorded = [(part.model, part.protocol) for part in manifest.parts]
    if recorded != list(parts):
        raise RunFolderError(
            f"run folder {path}",
            found=f"a comparison of {_named(recorded)}, not of {_named(parts)}",
            expected="the same models and protocols",
            fix="undo the change or give another --output",
        )
    before, now = (to_plain(each, where="comparison") for each in (manifest.asked, common))
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        what = "; ".join(f"{name}: recorded {before.get(name)}, now {now.get(name)}" for name in changed)
        raise RunFolderError(
            f"run folder {path}",
            found=f"a comparison that is not this one ({what})",
            expected="the same comparison",
            fix="undo the change or give another --output",
        )
    return manifest


def read_comparison(folder: str | Path) -> ComparisonManifest:
    """Read ``comparison.json``.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    try:
        return read_record(ComparisonManifest, Path(folder) / COMPARISON_FILE, expected="a comparison")
    except FileNotFoundError as error:
        raise RunFolderError(
            f"run folder {folder}",
            found=f"no readable {COMPARISON_FILE} ({error.strerror})",
            expected="a comparison",
            fix="name the folder of a comparison",
        ) from None


def _slug(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(model).name or "model").strip("-.") or "model"


def _named(parts: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{model} {protocol}" for model, protocol in parts)
