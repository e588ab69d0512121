"""Which written versions this code reads: the same major number; a newer minor may hold further fields."""

from __future__ import annotations

import re

from unfuse.errors import RunFolderError
from unfuse.runs.schema import SCHEMA_VERSION


def is_newer_minor(found: object, *, where: str) -> bool:
    """Whether a file of version ``found`` may hold fields that this code does not know.

    Args:
        found: its ``schema_version``.
        where: names the file in an error.

    Raises:
        RunFolderError: the major number is not ours, or ``found`` is no version at all.
    """
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", found) if isinstance(found, str) else None
    major, minor = (int(number) for number in SCHEMA_VERSION.split("."))
    if match is None or int(match[1]) != major:
        raise RunFolderError(
            f"{where}: schema_version",
            found=f"{found!r:.40}",
            expected=f"{major}.x",
            fix="read it with the version of unfuse that wrote it",
        )
    return int(match[2]) > minor
