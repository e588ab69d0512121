"""Answers of earlier runs in a file, for the drafts of the next run.

The file is safetensors: int32 tensors ``tokens`` (all answers, one after the other) and ``lengths``, and in the
metadata the format, the fingerprint of the model that wrote the answers, and a checksum over all of these.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.atomic_files import complete_file
from unfuse.errors import FileAccessError, InputError
from unfuse.speculation.history import MAX_TOKENS, History

_FORMAT: Final = "unfuse.history/1"
_MAX_BYTES: Final = 8 * MAX_TOKENS + 65_536
"""Size of the longest history: at most as many answers as tokens."""


def read_history(path: Path, history: History, fingerprint: str) -> None:
    """Let ``history`` learn the answers of a file; a file that does not exist has none.

    Args:
        path: the file.
        history: learns the answers in their order.
        fingerprint: of the model.

    Raises:
        FileAccessError: the file cannot be read.
        InputError: it is no history, is damaged, or belongs to another model.
    """
    if not path.exists():
        return
    if not path.is_file():  # reading a pipe or a device may never end
        raise InputError(str(path), found="no regular file", expected="a history file")
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MAX_BYTES else b""
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror, expected="a history file") from None
    if size > _MAX_BYTES:
        raise InputError(str(path), found=f"{size} bytes", expected=f"a history of at most {_MAX_BYTES} bytes")
    texts, tokens, lengths = _parsed(path, data)
    if texts.get("fingerprint") != fingerprint:
        raise InputError(
            str(path),
            found=f"the history of model {str(texts.get('fingerprint'))[:12]}",
            expected=f"that of {fingerprint[:12]}",
            fix="name another file with --history",
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < history.vocabulary:
        raise InputError(str(path), found="token ids outside the vocabulary", expected="a history of this model")
    for answer in np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else ():
        history.learn(answer.tolist())


def write_history(path: Path, history: History, fingerprint: str) -> None:
    """Write the answers of a history: completely or not at all, readable by the owner alone.

    Raises:
        FileAccessError: the file cannot be written.
    """
    from safetensors.numpy import save

    answers = [np.asarray(answer, np.int32) for answer in history.answers]
    tokens = np.concatenate([np.zeros(0, np.int32), *answers])
    lengths = np.array([len(answer) for answer in answers], np.int32)
    texts = {"format": _FORMAT, "fingerprint": fingerprint, "sha256": _checksum(tokens, lengths, fingerprint)}
    try:
        with complete_file(path, durable=True) as partial:
            partial.write_bytes(save({"tokens": tokens, "lengths": lengths}, texts))
    except OSError as error:
        raise FileAccessError(str(path), found=error.strerror, expected="a file that can be written") from None


def _parsed(path: Path, data: bytes) -> tuple[dict[str, str], NDArray[np.int32], NDArray[np.int32]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        texts = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        tokens, lengths = tensors["tokens"], tensors["lengths"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(str(path), found=f"no history ({type(error).__name__})", expected=_FORMAT) from None
    if texts.get("format") != _FORMAT:
        raise InputError(str(path), found=f"format {texts.get('format')}", expected=_FORMAT)
    sizes = [(each.dtype, each.ndim) for each in (tokens, lengths)]
    sound = sizes == [(np.dtype(np.int32), 1)] * 2 and bool((lengths > 0).all()) and lengths.sum() == len(tokens)
    if not sound or texts.get("sha256") != _checksum(tokens, lengths, texts.get("fingerprint", "")):
        raise InputError(str(path), found="damaged contents", expected=_FORMAT, fix="remove the file")
    return texts, tokens, lengths


def _checksum(tokens: NDArray[np.int32], lengths: NDArray[np.int32], fingerprint: str) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for each in (lengths, tokens):
        digest.update(len(each).to_bytes(8, "little") + each.tobytes())
    return digest.hexdigest()
