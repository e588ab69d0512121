"""Sample the memory of a process and of all its descendants."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Proportional set size (PSS) at one time: pages that several processes share are divided between them."""

    seconds: float
    own_bytes: int
    """Memory of the process itself."""
    tree_bytes: int
    """Memory of the process and all its descendants."""


class MemorySampler(threading.Thread):
    """Samples memory from ``start`` to ``stop``, or within a ``with`` block."""

    def __init__(self, pid: int, every_s: float):
        super().__init__(daemon=True)
        self.samples: list[MemorySample] = []
        self._pid, self._every_s = pid, every_s
        self._started_at = time.monotonic()
        self._stopped = threading.Event()

    @property
    def peak_bytes(self) -> int:
        """Most memory of the whole tree."""
        return max((sample.tree_bytes for sample in self.samples), default=0)

    def run(self) -> None:
        """Sample until ``stop``."""
        while not self._stopped.wait(self._every_s):
            own = _pss_bytes([self._pid])
            tree = own + _pss_bytes(_descendants(self._pid))
            self.samples.append(MemorySample(time.monotonic() - self._started_at, own, tree))

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found


def _pss_bytes(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 1024 * total
