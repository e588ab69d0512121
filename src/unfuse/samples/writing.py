"""Write a folder of the instruction set, in parallel and in bounded memory.

Every file is complete or absent and the JSON is written last, so that an equal call continues an interrupted one;
another call changes nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.atomic_files import complete_file, is_partial, make_folder, remove_partials
from unfuse.errors import DatasetError, FileAccessError
from unfuse.locks import FileLock, LockedError
from unfuse.samples.dataset import MANIFEST_NAME

_Task = TypeVar("_Task")

_LOCK: Final = ".begun.lock"
"""Shared by the processes that write a folder."""
_CLAIM_S: Final = 60.0
"""Limit of another process's claim, which takes far less."""
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
    with _writable(out), _claimed(out, manifest):
        workers = min(workers or os.cpu_count() or 1, len(entries))
        if workers == 1:
            for number, task in enumerate(tasks, start=1):
                write(out, task)
                done(number)
        else:
            with _worker_processes(workers) as pool:
                for number in _run_bounded(pool, out, tasks, write, 2 * workers):
                    done(number)
        if not (out / MANIFEST_NAME).is_file():
            with complete_file(out / MANIFEST_NAME) as partial:
                partial.write_text(manifest, encoding="utf-8")
        (out / _UNFINISHED).unlink(missing_ok=True)


def write_picture(path: Path, frame: NDArray[np.uint8], *, private: bool = True) -> None:
    """Write RGB uint8 ``[H, W, 3]`` as PNG, completely or not at all; ``private`` as for ``complete_file``."""
    with complete_file(path, private=private) as partial:
        Image.fromarray(frame).save(partial, format="PNG")


def _claim(out: Path, manifest: str, *, alone: bool) -> None:
    """Record the folder's JSON as unfinished.

    Args:
        out: the folder.
        manifest: its JSON.
        alone: whether no other process writes to it; temporary files are then of killed processes.

    Raises:
        DatasetError: the folder holds something else.
    """
    for name in (MANIFEST_NAME, _UNFINISHED):
        if (out / name).is_file() and (there := (out / name).read_text(encoding="utf-8")) != manifest:
            raise DatasetError(
                str(out),
                found=f"another data set ({_first_difference(there, manifest)})",
                expected="a new folder, or the same source and options to go on",
            )
    if (out / MANIFEST_NAME).is_file():
        return
    if (out / _UNFINISHED).is_file():
        if alone:
            for folder in (out, *(path for path in out.rglob("*") if path.is_dir())):
                remove_partials(folder)
        return
    if not all(is_partial(path.name) or path.name == _LOCK for path in out.iterdir()):
        raise DatasetError(str(out), found="a folder with other files in it", expected="a new folder")
    remove_partials(out)
    with complete_file(out / _UNFINISHED) as partial:
        partial.write_text(manifest, encoding="utf-8")


def _first_difference(there: str, manifest: str) -> str:
    """Return a phrase that names the first row that differs, and its field."""
    try:
        before, now = json.loads(there), json.loads(manifest)
        for number, (old, new) in enumerate(zip(before, now, strict=False)):
            if old != new:
                field = next(key for key in {**old, **new} if old.get(key) != new.get(key))
                return f"row {number} has another {field} than {new['id']!r} would have"
        return f"{len(before)} rows, not {len(now)}"
    except (ValueError, TypeError, AttributeError):
        return "its JSON is not of this project"


@contextmanager
def _worker_processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield processes that end with this process, and at once if the body is interrupted or fails."""
    # Spawned: a forked child of a process with threads, as torch has them, may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent) as pool:
        try:
            yield pool
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent process, and end when that has ended, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
def _claimed(out: Path, manifest: str) -> Iterator[None]:
    """Claim the folder for a dataset; other processes may write the same dataset at the same time.

    Raises:
        DatasetError: the folder holds something else, or another process does not finish its claim.
    """
    make_folder(out)
    try:
        lock = FileLock(out / _LOCK, wait_s=_CLAIM_S, may_share=True)
    except LockedError:
        raise DatasetError(
            str(out), found="another process writing to it", expected="one writer", fix="wait for it to end"
        ) from None
    try:
        _claim(out, manifest, alone=lock.is_exclusive())
        lock.share()
        yield
    finally:
        lock.remove()


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileAccessError(
            str(error.filename or out), found=error.strerror or error, expected="a folder with room to write in"
        ) from None
