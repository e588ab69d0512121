"""Write a folder of the instruction set, in parallel and in bounded memory.

Every file is complete or absent and the JSON is written last, so that an equal call continues an interrupted one;
another call changes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.atomic_files import complete_file, is_partial, remove_partials
from unfuse.errors import DatasetError, FileAccessError
from unfuse.samples.dataset import MANIFEST_NAME

_Task = TypeVar("_Task")

_UNFINISHED: Final = ".begun.json"
"""JSON of a folder that is being written."""


def write_folder(
    out: Path,
    entries: Sequence[dict[str, object]],
    tasks: Iterable[_Task],
    write: Callable[[Path, _Task], None],
    *,
    workers: int = 0,
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Write a folder, or the missing files of an unfinished one.

    Args:
        out: a new folder, or an unfinished one with equal rows.
        entries: rows of the JSON.
        tasks: media to write; taken a few at a time.
        write: writes the missing files of one task; runs in other processes.
        workers: processes; 0 means one per core.
        done: called with the number of finished tasks after each.

    Raises:
        DatasetError: the folder holds another dataset.
        FileAccessError: the folder cannot be written.
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
                for number in _run_bounded(pool, out, tasks, write, 2 * workers):
                    done(number)
        if not (out / MANIFEST_NAME).is_file():
            with complete_file(out / MANIFEST_NAME, private=False) as partial:
                partial.write_text(manifest, encoding="utf-8")
        (out / _UNFINISHED).unlink(missing_ok=True)


def write_picture(path: Path, frame: NDArray[np.uint8]) -> None:
    """Write RGB uint8 ``[H, W, 3]`` as PNG, completely or not at all."""
    with complete_file(path, private=False) as partial:
        Image.fromarray(frame).save(partial, format="PNG")


def _claim(out: Path, manifest: str) -> None:
    """Record the folder's JSON as unfinished.

    Raises:
        DatasetError: the folder holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST_NAME, _UNFINISHED):
        if (out / name).is_file() and (out / name).read_text(encoding="utf-8") != manifest:
            raise DatasetError(
                str(out), found="another data set", expected="a new folder, or the same source and options to go on"
            )
    if (out / MANIFEST_NAME).is_file() or (out / _UNFINISHED).is_file():
        return
    if not all(is_partial(path.name) for path in out.iterdir()):
        raise DatasetError(str(out), found="a folder with other files in it", expected="a new folder")
    remove_partials(out)
    with complete_file(out / _UNFINISHED, private=False) as partial:
        partial.write_text(manifest, encoding="utf-8")


def _run_bounded(
    pool: ProcessPoolExecutor, out: Path, tasks: Iterable[_Task], write: Callable[[Path, _Task], None], ahead: int
) -> Iterator[int]:
    """Submit a few tasks at a time, so that memory stays bounded and an error or interrupt leaves little work."""
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
