"""``run.json``: a manifest as a file, and whether two manifests describe one and the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from unfuse.errors import RunFolderError
from unfuse.runs.atomic import write_json_atomic
from unfuse.runs.plain import from_plain, parse_object, to_plain
from unfuse.runs.schema import Manifest
from unfuse.runs.version import is_newer_minor

MANIFEST_FILE: Final = "run.json"
COMPARISON_FILE: Final = "comparison.json"
"""In the place of ``run.json`` in a folder of several runs."""

IDENTITY: Final = (
    "schema_version",
    "protocol",
    "config",
    "model.fingerprint",
    "model.dtype",
    "model.device",
    "model.engine",
    "dataset.num_samples",
    "dataset.sha256",
    "environment.code_version",
    "environment.device_name",
)
"""What must be equal for two processes to add to one run. Names and paths do not enter: fingerprints do."""

NOT_IDENTITY: Final = frozenset({"config.output", "config.resume", "config.dataset"})
"""Options that say where a run lies, not what it is; of the dataset, the hash counts."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``run.json``.

    Raises:
        RunFolderError: it holds a value that is not JSON, or cannot be written.
    """
    write_json_atomic(folder / MANIFEST_FILE, manifest)


def read_manifest(folder: str | Path) -> Manifest:
    """Reads ``run.json``.

    Raises:
        RunFolderError: there is none, it cannot be read, or it is of another schema.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        several = (path.parent / COMPARISON_FILE).is_file()
        parts = ", ".join(sorted(p.parent.name for p in path.parent.glob(f"*/{MANIFEST_FILE}")))
        raise RunFolderError(
            f"run folder {folder}",
            found="a comparison of several runs" if several else f"no {MANIFEST_FILE}",
            expected="a run",
            fix=f"name one of the folders in it: {parts}" if several and parts else "name a folder that holds a run",
        ) from error
    except OSError as error:
        raise RunFolderError(
            str(path), found=f"cannot be read ({error.strerror})", expected="a run's manifest"
        ) from error
    value = parse_object(text, where=str(path))
    lenient = is_newer_minor(value.get("schema_version"), where=str(path))
    return from_plain(Manifest, value, where=str(path), ignore_unknown=lenient)


def differences(recorded: Manifest, current: Manifest) -> tuple[str, ...]:
    """What keeps ``current`` from continuing ``recorded``: ``name: recorded value, now value``, one each."""
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
