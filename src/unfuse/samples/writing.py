"""Fills a folder of the instruction set, in parallel and in bounded memory.

Every file is whole or absent and the JSON is written last, so that a call that was cut off is continued by the same
call; running it again changes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.errors import DatasetError, FileAccessError
from unfuse.samples.dataset import MANIFEST_NAME

_Task = TypeVar("_Task")

_BEGUN: Final = ".begun.json"
"""What is being written, while it is."""


def write_folder(
    out: Path,
    entries: Sequence[dict[str, object]],
    tasks: Iterable[_Task],
    write: Callable[[Path, _Task], None],
    *,
    workers: int = 0,
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Writes a whole folder, or what is missing in it.

    Args:
        out: a new folder, or one that an earlier call began with the same rows.
        entries: the rows of the JSON.
        tasks: media to write; taken a few at a time.
        write: writes what is missing of one; runs in other processes.
        workers: processes; 0 means one a core.
        done: told how many tasks are done, each time there is one more.

    Raises:
        DatasetError: the folder holds another data set.
        FileAccessError: it cannot be written.
    """
    manifest = json.dumps(list(entries), indent=1) + "\n"
    with _writable(out):
        _claim(out, manifest)
        workers = min(workers or os.cpu_count() or 1, len(entries))
        if workers == 1:
            for number, task in enumerate(tasks, start=1):
                write(out, task)
                done(number)
        else:
            # Spawned: a forked child of a process with threads, as torch has them, may hang.
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                for number in _in_turn(pool, out, tasks, write, 2 * workers):
                    done(number)
        if not (out / MANIFEST_NAME).is_file():
            with whole(out / MANIFEST_NAME) as partial:
                partial.write_text(manifest, encoding="utf-8")
        (out / _BEGUN).unlink(missing_ok=True)


def write_picture(path: Path, frame: NDArray[np.uint8]) -> None:
    """Writes RGB uint8 ``[H, W, 3]`` as PNG, whole or not at all."""
    with whole(path) as partial:
        Image.fromarray(frame).save(partial, format="PNG")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; moved there if nothing went wrong."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _claim(out: Path, manifest: str) -> None:
    """Says in the folder what will be in it, unless something else is."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_NAME, _BEGUN):
        if (out / name).is_file() and (out / name).read_text(encoding="utf-8") != manifest:
            raise DatasetError(
                str(out), found="another data set", expected="a new folder, or the same source and options to go on"
            )
    if (out / MANIFEST_NAME).is_file() or (out / _BEGUN).is_file():
        return
    if any(out.iterdir()):
        raise DatasetError(str(out), found="a folder with other files in it", expected="a new folder")
    with whole(out / _BEGUN) as partial:
        partial.write_text(manifest, encoding="utf-8")


def _in_turn(
    pool: ProcessPoolExecutor, out: Path, tasks: Iterable[_Task], write: Callable[[Path, _Task], None], ahead: int
) -> Iterator[int]:
    """Tasks handed out a few at a time, so that memory stays bounded and an error or interrupt leaves little behind."""
    source = iter(tasks)
    waiting = [pool.submit(write, out, task) for task in islice(source, ahead)]
    number = 0
    while waiting:
        waiting.pop(0).result()
        waiting += [pool.submit(write, out, task) for task in islice(source, 1)]
        number += 1
        yield number


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileAccessError(
            str(error.filename or out), found=error.strerror or error, expected="a folder with room to write in"
        ) from None
