"""Operators and kernels by stage: a clock that marks stages and sub-spans for torch's profiler.

In the profile, a stage is a range ``unfuse: encode`` and a sub-span ``unfuse: encode.pooling``; their operators and
kernels lie below them, on the tracks of host and device.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unfuse.measure.clock import listening

if TYPE_CHECKING:
    import torch

PREFIX: Final = "unfuse: "
MAX_EVENTS: Final = 200_000
"""Largest number of events in a file; about 60 MB."""
_ON_DEVICE: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


@dataclass(slots=True)
class ProfilerClock:
    """A clock that marks ranges instead of timing."""

    _stage: str = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Surround the body by the range of a stage."""
        from torch.profiler import record_function

        self._stage = name
        with listening(self), record_function(f"{PREFIX}{name}"):
            yield

    def span(self, name: str) -> AbstractContextManager[None]:
        """Return the range of a sub-span."""
        from torch.profiler import record_function

        return record_function(f"{PREFIX}{self._stage}.{name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Profiled:
    """A profile in the Chrome trace format."""

    text: str
    num_events: int
    num_kernels: int
    """Events on the device."""
    num_left_out: int


@contextmanager
def profiling(device: torch.device) -> Iterator[list[Profiled]]:
    """Profile the body; the list holds the profile when the body has ended."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its own progress messages would mix with our lines
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    found: list[Profiled] = []
    with profile(activities=activities) as profiler:
        yield found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_text(encoding="utf-8", errors="backslashreplace"))
    found.append(bounded(trace, MAX_EVENTS))


def bounded(trace: dict[str, Any], most: int) -> Profiled:
    """Return a profile of at most ``most`` events, without the shortest ones; ranges of stages stay."""
    events: list[dict[str, Any]] = trace["traceEvents"]
    timed = [e for e in events if e.get("ph") == "X" and not str(e.get("name")).startswith(PREFIX)]
    excess = max(len(events) - most, 0)
    dropped = {id(e) for e in sorted(timed, key=lambda e: float(e.get("dur", 0)))[:excess]}
    remaining = [e for e in events if id(e) not in dropped]
    return Profiled(
        text=json.dumps({**trace, "traceEvents": remaining}),
        num_events=len(remaining),
        num_kernels=sum(e.get("cat") in _ON_DEVICE for e in remaining),
        num_left_out=len(dropped),
    )
