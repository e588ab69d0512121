"""Named baselines: runs kept under a name, so that a later run can be compared with "main" or "before-cache".

A baseline is a whole run folder, copied byte for byte to ``<folder>/<name>``; commit the folder or store it in a build
cache. It appears whole or not at all. It replaces a baseline of equal name only if ``replace`` is true.
"""

from __future__ import annotations

import difflib
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from unfuse.atomic_files import complete_file, make_folder, sync_folder
from unfuse.errors import InputError, RunFolderError
from unfuse.records.atomic import cannot_write
from unfuse.records.folder import RunFolder
from unfuse.records.manifest import MANIFEST_FILE
from unfuse.records.run_dir import PROBES_FILE, REPORT_FILE, SUMMARY_FILE
from unfuse.records.samples_file import SAMPLES_FILE

BASELINES: Final = Path(".unfuse") / "baselines"
"""Default folder, below the working directory."""
_FILES: Final = (MANIFEST_FILE, SAMPLES_FILE, PROBES_FILE, SUMMARY_FILE, REPORT_FILE)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Baselines:
    """The named runs of one folder; the folder need not exist yet."""

    def __init__(self, folder: str | Path = BASELINES):
        self.folder = Path(folder)

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        with suppress(OSError):
            return tuple(
                sorted(p.name for p in self.folder.iterdir() if _fits(p.name) and (p / MANIFEST_FILE).is_file())
            )
        return ()

    def find(self, name: str) -> Path:
        """Return the run folder of a baseline.

        Raises:
            InputError: there is no baseline of that name, or it is no name.
        """
        check_name(name)
        names = self.names()
        if name in names:
            return self.folder / name
        near = difflib.get_close_matches(name, names, n=1)
        raise InputError(
            f"baseline {name}",
            found=f"no baseline of that name in {self.folder}",
            expected=", ".join(names) or "a saved baseline",
            fix=f"did you mean {near[0]}?" if near else "save a baseline with --save-baseline",
        )

    def check_free(self, name: str, *, replace: bool = False) -> None:
        """Refuse a name that no baseline may be saved under.

        Raises:
            InputError: it is no name.
            RunFolderError: the name is taken and not to be replaced, or taken by something that is no run.
        """
        check_name(name)
        path = self.folder / name
        if not path.exists() and not path.is_symlink():
            return
        if name not in self.names() or path.is_symlink():
            raise RunFolderError(str(path), found="something that is no baseline", expected="none or a baseline")
        if not replace:
            raise RunFolderError(
                f"baseline {name}",
                found="a baseline of that name",
                expected="a new name",
                fix="give another name, or --replace it",
            )

    def save(self, name: str, run: str | Path, *, replace: bool = False) -> Path:
        """Copy a run that has ended; return the folder of the copy.

        Args:
            name: letters, digits, ``.``, ``_`` and ``-``, at most 64.
            run: its folder.
            replace: replace a baseline of that name.

        Raises:
            InputError: it is no name.
            RunFolderError: the name is taken, the run is damaged or has not ended, or the disk refused; a baseline of
                that name is then as it was.
        """
        self.check_free(name, replace=replace)
        source = RunFolder.open(run)
        if not source.ended:
            raise RunFolderError(
                f"run folder {run}",
                found="a run that did not end",
                expected="a finished run",
                fix="finish it with bench --resume",
            )
        path = self.folder / name
        token = secrets.token_hex(4)
        staging, old = (self.folder / f".{name}.{token}.{end}" for end in ("new", "old"))
        try:
            make_folder(staging)
            for file in _FILES:
                if (source.path / file).is_file():
                    with complete_file(staging / file, private=file != REPORT_FILE) as partial:
                        shutil.copyfile(source.path / file, partial)
            copy = RunFolder.open(staging)
            copy.records()
            copy.read_probes()
            sync_folder(staging)
            if path.exists():
                path.rename(old)
            try:
                staging.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
            sync_folder(self.folder)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            for leftover in (staging, old):
                shutil.rmtree(leftover, ignore_errors=True)
        return path


def check_name(name: str) -> None:
    """Refuse a text that is no name of a baseline, such as a path.

    Raises:
        InputError: says the rule.
    """
    if not _fits(name):
        raise InputError(
            "baseline",
            found=repr(name)[:80],
            expected="a name of letters, digits, '.', '_' and '-' that begins with a letter or digit, at most 64 long",
        )


def _fits(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
