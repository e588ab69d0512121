"""Count the work of a piece of code: operators of torch, calls of functions, and bytes that are read.

The counts of equal work on other values are equal, however busy the machine is. A result that is looked up instead of
computed shows in at least one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unfuse.records.work_records import Effort

_IO: Final = Path("/proc/self/io")


_ON_HOST: Final = frozenset({"load", "preprocess"})
"""Stages whose calls are counted: counting takes longer than the calls, and torch counts the work of the others."""


@contextmanager
def counted(*, calls: bool = True) -> Iterator[list[Effort]]:
    """Count the work of the body in this thread; the list holds the counts when the body has ended.

    Bytes are those of the whole process. On a system without ``/proc/self/io`` they are None.
    """
    found: list[Effort] = []
    operators, called = _Operators(), _Calls()
    before = _read_bytes()
    with operators, called if calls else nullcontext():
        yield found
    after = _read_bytes()
    found.append(
        Effort(
            operators=operators.count,
            elements=operators.elements,
            calls=called.count if calls else None,
            read_bytes=None if before is None or after is None else after - before,
        )
    )


class EffortClock:
    """A clock that counts the work of each stage instead of its time."""

    def __init__(self) -> None:
        self.stages: dict[str, Effort] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body as stage ``name``."""
        with counted(calls=name in _ON_HOST) as found:
            yield
        (self.stages[name],) = found


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.count = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.count += 1
        self.elements += sum(each.numel() for each in tree_leaves(made) if isinstance(each, torch.Tensor))
        return made


class _Calls:
    """Counts calls of Python and C functions in this thread, except those of a profiler that ran before."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self.count += 1


def _read_bytes() -> int | None:
    """Return the bytes that this process has read from files, from the cache of the system too."""
    try:
        lines = _IO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar:")), None)
