"""Load transformers' objects from a checkpoint folder without running code that the folder brings along.

A checkpoint can name Python code in two ways: ``auto_map`` (classes in ``.py`` files of the folder or of another
repository) and an attention or experts implementation that is a kernel on the hub. transformers runs the first after a
prompt on stdin, ``echo y |`` included, and the second without one. All loading in this project goes through
``from_pretrained``: it refuses both and names the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from unfuse.errors import CheckpointError, MissingPackageError, UnfuseError
from unfuse.extras import install_command

_MAX_REASON: Final = 300
"""Characters of an error message that are quoted."""
_CONFIGS: Final = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "generation_config.json",
)
_KERNEL_KEYS: Final = frozenset(
    f"{prefix}{part}_implementation{suffix}"
    for prefix in ("", "_")
    for part in ("attn", "experts")
    for suffix in ("", "_internal")
)


def from_pretrained(kind: Any, folder: str | Path, **kwargs: Any) -> Any:
    """Return ``kind.from_pretrained(folder)`` with remote code refused.

    An ``auto_map`` beside a class that transformers has itself is not needed and does no harm.

    Args:
        kind: a class of transformers or of this project that has ``from_pretrained``.
        folder: the checkpoint.
        **kwargs: passed on.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or needs code of its own; the message names the file that
            says so.
        MissingPackageError: the checkpoint needs a package that is not installed.
    """
    refuse_kernels(folder)
    try:
        return kind.from_pretrained(folder, **(kwargs | {"trust_remote_code": False}))
    except (UnfuseError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise _missing_package(error, kind, folder) from None
    # Files of a stranger: transformers, tokenizers and safetensors raise errors of any class, plain ones included.
    except Exception as error:  # noqa: BLE001
        if "trust_remote_code" in str(error):
            raise _own_code(folder, kind.__name__) from None
        raise CheckpointError(
            str(folder),
            found=f"no loadable {_noun(kind)} ({reason_of(error)})",
            expected="a whole checkpoint",
        ) from None


def reason_of(error: BaseException) -> str:
    """Return an error's message as one line, shortened: some errors list every known class."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


def _missing_package(error: ImportError, kind: Any, folder: str | Path) -> MissingPackageError:
    reason = reason_of(error)
    named = re.search(r"pip install (?:-\S+ )*['\"`]?([A-Za-z][\w.-]*)", reason)
    package = "torchvision" if "torchvision" in reason.lower() else named[1] if named else error.name
    return MissingPackageError(
        f"{_noun(kind)} of {folder}",
        found=f"no {package}" if package else f"a package that cannot be imported ({reason})",
        expected="this package, which the checkpoint needs",
        fix=f"run: {install_command(package)}" if package else None,
    )


def _noun(kind: Any) -> str:
    name = kind.__name__
    return next((noun for noun in ("tokenizer", "processor", "config") if noun in name.lower()), "model")


def refuse_kernels(folder: str | Path) -> None:
    """Raise an error if a config asks transformers to fetch a kernel from the hub and run it.

    Raises:
        CheckpointError: with the file, the key and the name of the kernel.
    """
    for path, config in _configs(folder):
        for key, value in _entries(config):
            # One name, or one for each part of the model.
            named = value.values() if isinstance(value, dict) else [value]
            if key in _KERNEL_KEYS and any(isinstance(each, str) and "/" in each for each in named):
                raise CheckpointError(
                    path,
                    found=f"{key} {value!r}, code on the hub",
                    expected="an implementation that transformers brings (sdpa, eager)",
                    fix=f"Remove {key} from the file",
                )


def _own_code(folder: str | Path, kind: str) -> CheckpointError:
    """Return the error with the file of an ``auto_map`` for a class, and the target of the mapping."""
    found = [
        (path, key, value)
        for path, config in _configs(folder)
        for name, mapped in _entries(config)
        if name == "auto_map" and isinstance(mapped, dict)
        for key, value in mapped.items()
    ]
    best = [entry for entry in found if entry[1] == kind] or found
    path = best[0][0] if best else str(folder)
    classes = ", ".join(f" {key}: {value}" for each, key, value in best if each == path)
    return CheckpointError(
        path,
        found=f"code of the checkpoint's own (auto_map{classes})",
        expected="classes that transformers brings: a checkpoint's code is never run",
        fix="Use a checkpoint of the same model that loads without trust_remote_code",
    )


def _configs(folder: str | Path) -> Iterator[tuple[str, Any]]:
    for name in _CONFIGS:
        path = Path(folder) / name
        try:
            yield str(path), json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # absent; a caller that needs the file raises the error
            continue


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of an object, nested ones included."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
