"""Every exception of the package, and the one form its messages take.

::

    UnfuseError
    ├── InputError                 an input of the user is at fault; exit code 2
    │   ├── FileAccessError        a file is missing or cannot be read
    │   ├── EventFileError         an event file is truncated, corrupt or of an unknown format
    │   │   └── UnsafeFileError    an event file asks for more than plain numpy arrays; nothing of it was run
    │   ├── EventStreamError       events were read, but they are not a valid stream
    │   ├── MediaError             a frame, image or video cannot be decoded
    │   ├── DatasetError           a dataset folder or its JSON is malformed
    │   ├── CheckpointError        a checkpoint folder is incomplete or does not fit the architecture
    │   ├── PromptError            a question or token sequence cannot be used
    │   ├── FeaturesError          features do not belong to this model, dtype or width
    │   ├── CutError               a model's stages cannot be separated, or its vision side cannot be found
    │   ├── DeviceError            a device, dtype or engine does not exist here
    │   ├── RunFolderError         a run folder is occupied, damaged or belongs to another run
    │   └── MissingPackageError    an optional package is not installed
    ├── NonFiniteError             features or logits hold NaN or infinity, so there is no answer; exit code 1
    └── VerificationError          a check, verdict or regression failed; exit code 1

A message is one line: the thing, the value found, the value expected, and the way out.
"""

from __future__ import annotations

import sys


class UnfuseError(Exception):
    """Root of the tree.

    Args:
        what: the thing at fault, named (a path, an argument, a tensor).
        found: the value or state found there.
        expected: the values or states that would have been accepted.
        fix: the way out.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: object = None, expected: object = None, fix: str | None = None):
        parts = [what]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        message = ": ".join([*parts[:1], ", ".join(parts[1:])] if parts[1:] else parts)
        if fix:
            message = f"{message}. {fix[0].upper()}{fix[1:]}"
        # A file may put line breaks and terminal codes into names; a message stays one printable line.
        super().__init__("".join(c if c.isprintable() else " " for c in message))


class InputError(UnfuseError):
    """An input of the user is at fault."""

    exit_code = 2


class FileAccessError(InputError):
    """A file is missing or cannot be read."""


class EventFileError(InputError):
    """An event file is truncated, corrupt or of an unknown format."""


class UnsafeFileError(EventFileError):
    """An event file asks for more than plain numpy arrays. Nothing of it was run."""


class EventStreamError(InputError):
    """Events were read, but they are not a valid stream."""


class MediaError(InputError):
    """A frame, image or video cannot be decoded."""


class DatasetError(InputError):
    """A dataset folder or its JSON is malformed."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete or does not fit the architecture."""


class PromptError(InputError):
    """A question or token sequence cannot be used."""


class FeaturesError(InputError):
    """Features that do not belong to this model, dtype or width."""


class CutError(InputError):
    """A model's stages cannot be separated, or its vision side cannot be found."""


class DeviceError(InputError):
    """A device, dtype or engine that does not exist here."""


class RunFolderError(InputError):
    """A run folder is occupied, damaged or belongs to another run."""


class MissingPackageError(InputError):
    """An optional package is not installed."""


class NonFiniteError(UnfuseError):
    """Features or logits hold NaN or infinity, so there is no answer.

    Args:
        stage: stage in which the values began: ``encode``, ``prefill``, ``decode``, or the fused call.
        what: the values: ``features`` or ``logits``.
        found: the values that are not finite.
    """

    def __init__(self, stage: str, what: str, *, found: object):
        super().__init__(
            f"{stage}: {what} are not finite",
            found=found,
            expected="finite values",
            fix="try another --dtype (float16 overflows first), and check the weights for damage",
        )
        self.stage = stage


class VerificationError(UnfuseError):
    """A check, verdict or regression failed."""


def as_ours(error: BaseException) -> UnfuseError | None:
    """Return the error as a package error: a ``DeviceError`` if a device is too small; None for any foreign error."""
    if isinstance(error, UnfuseError):
        return error
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, torch.OutOfMemoryError):
        return None
    return DeviceError(
        "device memory",
        found=f"none left ({str(error).split('. GPU ')[0].rstrip('.')})",
        expected="room for the model, its cache and its work",
        fix="try --dtype bfloat16, fewer --max-new-tokens, a smaller --capacity, or a larger device",
    )
