"""Several runs as one folder: ``comparison.json`` names them, each has a run folder of its own inside.

``comparison.json`` says which model and protocol each part is and whether it ended; it is written whole, before the
first part and after each. A part that has ended is never touched again, one that was cut off is resumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import cannot_write, write_json_atomic, write_text_atomic
from unfuse.runs.manifest import COMPARISON_FILE
from unfuse.runs.place import HTML_FILE, REPORT_FILE, SUMMARY_FILE, refuse_occupied
from unfuse.runs.plain import from_plain, parse_object, to_plain
from unfuse.runs.schema import SCHEMA_VERSION
from unfuse.runs.version import is_newer_minor


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
    """What all parts have in common and no model need be loaded to know: options, data, placement, code."""
    schema_version: str = SCHEMA_VERSION


class ComparisonFolder:
    """Several runs on the disk. Made by ``create`` or ``resume``."""

    def __init__(self, path: Path, manifest: ComparisonManifest):
        """For the two class methods."""
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(
        cls,
        path: str | Path,
        parts: Sequence[tuple[str, str]],
        *,
        asked: Mapping[str, Any],
        created: str,
        command: tuple[str, ...],
    ) -> Self:
        """Starts a comparison in a folder that does not exist yet or is empty.

        Args:
            path: the folder.
            parts: (model, protocol), in the order in which they are run.
            asked: what all parts have in common, plain JSON.
            created: ISO-8601, UTC.
            command: what was called.

        Raises:
            RunFolderError: the folder holds anything, or cannot be made.
        """
        place = Path(path).absolute()
        refuse_occupied(place)
        entries = tuple(
            PartEntry(folder=f"{i:02d}-{_slug(model)}-{protocol}", model=model, protocol=protocol)
            for i, (model, protocol) in enumerate(parts, start=1)
        )
        folder = cls(place, ComparisonManifest(created=created, command=command, parts=entries, asked=asked))
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(place, error) from error
        folder._write()
        return folder

    @classmethod
    def resume(cls, path: str | Path, parts: Sequence[tuple[str, str]], *, asked: Mapping[str, Any]) -> Self:
        """Continues a comparison that ended early; a failed part is tried again.

        Raises:
            RunFolderError: there is none, or one of other models, protocols, options, data, placement or code; every
                difference is named.
        """
        place = Path(path).absolute()
        manifest = read_comparison(place)
        recorded = [(part.model, part.protocol) for part in manifest.parts]
        if recorded != list(parts):
            raise RunFolderError(
                f"run folder {place}",
                found=f"a comparison of {_named(recorded)}, not of {_named(parts)}",
                expected="the same models and protocols",
                fix="undo the change or give another --output",
            )
        before, now = (to_plain(each, where="comparison") for each in (manifest.asked, asked))
        if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            what = "; ".join(f"{name}: recorded {before.get(name)}, now {now.get(name)}" for name in changed)
            raise RunFolderError(
                f"run folder {place}",
                found=f"a comparison that is not this one ({what})",
                expected="the same one",
                fix="undo the change or give another --output",
            )
        return cls(place, manifest)

    def run_folder(self, index: int) -> Path:
        """Where a part's run lies."""
        return self.path / self.manifest.parts[index].folder

    def note(
        self, index: int, status: Literal["ended", "failed"], error: str | None = None, *, refused: bool = False
    ) -> None:
        """Writes down how a part came out.

        Raises:
            RunFolderError: it cannot be written.
        """
        parts = list(self.manifest.parts)
        parts[index] = replace(parts[index], status=status, error=error, refused=refused)
        self.manifest = replace(self.manifest, parts=tuple(parts))
        self._write()

    def finish(self, summary: dict[str, Any], report: str, page: str) -> None:
        """Writes ``summary.json``, ``report.md`` and ``report.html``.

        Raises:
            RunFolderError: they cannot be written.
        """
        write_json_atomic(self.path / SUMMARY_FILE, summary)
        write_text_atomic(self.path / REPORT_FILE, report)
        write_text_atomic(self.path / HTML_FILE, page)

    def _write(self) -> None:
        write_json_atomic(self.path / COMPARISON_FILE, self.manifest)


def read_comparison(folder: str | Path) -> ComparisonManifest:
    """Reads ``comparison.json``.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    path = Path(folder) / COMPARISON_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder}",
            found=f"no readable {COMPARISON_FILE} ({error.strerror})",
            expected="a comparison",
            fix="name the folder of one",
        ) from None
    value = parse_object(text, where=str(path))
    lenient = is_newer_minor(value.get("schema_version"), where=str(path))
    return from_plain(ComparisonManifest, value, where=str(path), ignore_unknown=lenient)


def _slug(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(model).name or "model").strip("-.") or "model"


def _named(parts: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{model} {protocol}" for model, protocol in parts)
