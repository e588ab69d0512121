"""``run.json``: the manifest as a file, and the differences that keep two manifests from describing one run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from unfuse.errors import RunFolderError
from unfuse.records.atomic import write_json_atomic
from unfuse.records.conversion import read_record, to_plain
from unfuse.records.schema import Manifest

MANIFEST_FILE: Final = "run.json"
COMPARISON_FILE: Final = "comparison.json"
"""File of a folder of several runs; such a folder has no ``run.json``."""

IDENTITY: Final = (
    "schema_version",
    "protocol",
    "config",
    "model.fingerprint",
    "model.settings_sha256",
    "model.dtype",
    "model.device",
    "model.engine",
    "dataset.num_samples",
    "dataset.sha256",
    "environment.code_version",
    "environment.device_name",
)
"""Fields that must be equal for two processes to add to one run: fingerprints, not names and paths."""

NOT_IDENTITY: Final = frozenset({"config.output", "config.resume", "config.dataset"})
"""Options about the place of a run, not about its content; the dataset counts by its hash."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``run.json``.

    Raises:
        RunFolderError: it holds a value that is not JSON, or cannot be written.
    """
    write_json_atomic(folder / MANIFEST_FILE, manifest)


def read_manifest(folder: str | Path) -> Manifest:
    """Read ``run.json``.

    Raises:
        RunFolderError: there is none, it cannot be read, or it is of another schema.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        return read_record(Manifest, path, expected="a run's manifest")
    except FileNotFoundError as error:
        several = (path.parent / COMPARISON_FILE).is_file()
        parts = ", ".join(sorted(p.parent.name for p in path.parent.glob(f"*/{MANIFEST_FILE}")))
        raise RunFolderError(
            f"run folder {folder}",
            found="a comparison of several runs" if several else f"no {MANIFEST_FILE}",
            expected="a run",
            fix=f"name one of the folders in it: {parts}" if several and parts else "name a folder that holds a run",
        ) from error


def differences(recorded: Manifest, current: Manifest) -> tuple[str, ...]:
    """Return why ``current`` cannot continue ``recorded``: ``name: recorded value, now value`` per difference."""
    before, now = (dict(_identity(manifest)) for manifest in (recorded, current))
    names = dict.fromkeys([*before, *now])
    return tuple(
        f"{name}: recorded {_shown(before, name)}, now {_shown(now, name)}"
        for name in names
        if (name in before) != (name in now) or before.get(name) != now.get(name)
    )


def _identity(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    plain = to_plain(manifest, where="manifest")
    for name in IDENTITY:
        value: Any = plain
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        for leaf, item in _leaves(name, value):
            if leaf not in NOT_IDENTITY:
                yield leaf, item


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    else:
        yield name, value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "nothing"
