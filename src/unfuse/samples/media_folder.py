"""The folder of one kind of media, and the paths in it that rows may name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from unfuse.errors import DatasetError


class MediaFolder:
    """One folder of a dataset, as it is while the dataset's rows are read."""

    def __init__(self, root: Path):
        self._root = root
        self._resolved = root.resolve()
        self._inside: dict[PurePosixPath, bool] = {}
        """Whether each folder below leads to no other: a row costs one look at its file."""

    def path(self, value: Any, where: str) -> Path | None:
        """Return the path that a row names; None if it names none.

        Args:
            value: of the row.
            where: the value's name, for an error.

        Raises:
            DatasetError: no file name, or a name that leads out of the folder.
        """
        if value is None or value in ("", []):
            return None
        if not isinstance(value, str):
            raise DatasetError(where, found=type(value).__name__, expected="a file name")
        relative = PurePosixPath(value)
        if relative.is_absolute() or ".." in relative.parts or "\0" in value:
            raise DatasetError(where, found=repr(value), expected=f"a path below {self._root.name}/")
        # A kind's folder may itself be a link, as large ones are; a link inside it must not lead out of it.
        path, parent = self._root / relative, relative.parent
        if parent not in self._inside:
            self._inside[parent] = self._leads_inside(self._root / parent)
        if not self._inside[parent] or (path.is_symlink() and not self._leads_inside(path)):
            raise DatasetError(
                where, found=f"{value!r}, a link to elsewhere", expected=f"a path below {self._root.name}/"
            )
        return path

    def _leads_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._resolved)
