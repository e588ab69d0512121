"""Autotuner: times kernel configs on this device once, and stores the fastest on disk."""

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

from unfuse.atomic_files import make_folder
from unfuse.engines.graphed.cuda_graphs import GraphedCall
from unfuse.engines.graphed.kernels.launch import compiling
from unfuse.errors import UnfuseError
from unfuse.records.atomic import write_json_atomic
from unfuse.user_cache import cache_home

T = TypeVar("T")
_REPEATS: Final = 8
"""Launches that a config is timed by; the fastest counts."""


class Autotuner:
    """Chooses the fastest config. Without a CUDA device it returns the first candidate."""

    def __init__(self, device: torch.device, folder: Path | None = None):
        self._device = device
        self._folder = folder or cache_home() / "tuning"

    def choose(self, key: str, candidates: Sequence[T], run: Callable[[T], None]) -> T:
        """Return the fastest candidate.

        Args:
            key: name of the problem in the tuning file.
            candidates: configs; the first one always works.
            run: launches the work with a config. It should launch the whole pass that will be captured, because a
                kernel's speed depends on the kernels around it; the pass must also exceed the caches. ``run`` is first
                called once per config only to compile its kernels.
        """
        if self._device.type != "cuda" or len(candidates) == 1:
            return candidates[0]
        names = [_name(candidate) for candidate in candidates]
        stored = self._stored.get(key)
        if stored in names:
            return candidates[names.index(stored)]
        with compiling(os.cpu_count() or 1):
            for candidate in candidates:
                run(candidate)
        times = [self._time(candidate, run) for candidate in candidates]
        best = min(range(len(times)), key=times.__getitem__)
        self._stored[key] = names[best]
        self._save()
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
    def _stored(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def _save(self) -> None:
        # Without the file, the next run only times the configs again.
        with suppress(OSError, UnfuseError):
            make_folder(self._folder)
            write_json_atomic(self._file, self._stored)


def _name(candidate: object) -> object:
    return candidate if isinstance(candidate, str) else list(astuple(candidate))  # type: ignore[call-overload]  # the others are dataclasses
