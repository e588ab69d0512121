"""Which of several ways is the fastest here: tried once, remembered on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import triton

from unfuse.cache import cache_home
from unfuse.engines.graphed.cuda_graphs import GraphedCall
from unfuse.engines.graphed.kernels.launch import compiling
from unfuse.errors import UnfuseError
from unfuse.runs.atomic import write_json_atomic

T = TypeVar("T")
_REPEATS: Final = 8


class Autotuner:
    """Chooses and remembers; what cannot be timed here (no CUDA device) takes the first."""

    def __init__(self, device: torch.device, folder: Path | None = None):
        self._device = device
        self._folder = folder or cache_home() / "tuning"
        self.tried = 0
        """Shapes that were timed and not remembered."""

    def choose(self, key: str, candidates: Sequence[T], run: Callable[[T], None]) -> T:
        """The fastest candidate.

        Args:
            key: the shape's name.
            candidates: ways to do it; the first one always works.
            run: launches the work with one of them; once with each while kernels are compiled and not run. What is
                fast alone need not be so among its neighbours, so this is best the whole of what will be captured; it
                must also be too large for caches.
        """
        if self._device.type != "cuda" or len(candidates) == 1:
            return candidates[0]
        names = [_name(candidate) for candidate in candidates]
        known = self._known.get(key)
        if known in names:
            return candidates[names.index(known)]
        self.tried += 1
        with compiling(os.cpu_count() or 1):
            for candidate in candidates:
                run(candidate)
        times = [self._time(candidate, run) for candidate in candidates]
        best = min(range(len(times)), key=times.__getitem__)
        self._known[key] = names[best]
        self._remember()
        return candidates[best]

    def _time(self, candidate: T, run: Callable[[T], None]) -> float:
        try:
            work = GraphedCall(functools.partial(run, candidate), self._device)
        except triton.runtime.errors.OutOfResources:
            return float("inf")
        work()
        times = []
        for _ in range(_REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)))
        return min(times)

    @cached_property
    def _file(self) -> Path:
        parts = [torch.cuda.get_device_name(self._device), torch.__version__, triton.__version__]
        kernels = sorted((Path(__file__).parent / "kernels").glob("*.py"))
        code = hashlib.sha256(b"".join(path.read_bytes() for path in kernels)).hexdigest()[:12]
        return self._folder / ("-".join([*parts, code]).replace(" ", "_").replace("/", "_") + ".json")

    @cached_property
    def _known(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def _remember(self) -> None:
        # A cache that cannot be written costs time, not answers.
        with suppress(OSError, UnfuseError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._file, self._known)


def _name(candidate: object) -> object:
    return candidate if isinstance(candidate, str) else list(astuple(candidate))  # type: ignore[call-overload]  # the others are dataclasses
