"""Compare ``event_frames`` with the published rasteriser, one Python loop over events.

Both draw the same recording in the same run; the frames are compared before anything is printed.

    python benchmarks/rasterise.py                       a synthetic window of ten million events
    python benchmarks/rasterise.py --events recording.npy
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream, event_frames, read_events, split_equal_count
from unfuse.testing import synthetic_stream

Frames = list[NDArray[np.uint8]]


def by_loop(stream: EventStream) -> Frames:
    """Draw frames by the published algorithm: each event paints its pixel, in order."""
    frames = []
    for run in split_equal_count(stream, 5):
        frame = np.full((int(run.y.max()) + 1, int(run.x.max()) + 1, 3), 255, dtype=np.uint8)
        for x, y, p in zip(run.x, run.y, run.p, strict=True):
            frame[y, x] = (0, 0, 255) if p == 0 else (255, 0, 0)
        frames.append(frame)
    return frames


def timed(draw: Callable[[EventStream], Frames], stream: EventStream, repeats: int) -> tuple[Frames, float]:
    """Return the frames and the median time in ms, after one warm-up."""
    frames = draw(stream)
    times = []
    for _ in range(repeats):
        started = time.perf_counter_ns()
        draw(stream)
        times.append((time.perf_counter_ns() - started) / 1e6)
    return frames, median(times)


def main() -> None:
    """Draw, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=Path, help="a recording; default: synthetic")
    parser.add_argument("--num-events", type=int, default=10_000_000, help="size of the synthetic one")
    arguments = parser.parse_args()
    stream = (
        read_events(arguments.events) if arguments.events else synthetic_stream(arguments.num_events, size=(640, 480))
    )
    slow, slow_ms = timed(by_loop, stream, repeats=1)
    fast, fast_ms = timed(event_frames, stream, repeats=30)
    if not all(np.array_equal(a, b) for a, b in zip(slow, fast, strict=True)):
        raise SystemExit("the frames differ")
    for name, ms in (("per-event loop", slow_ms), ("event_frames", fast_ms)):
        print(f"{name:<16} {ms:10.2f} ms  {ms * 1e6 / len(stream):8.1f} ns/event")
    print(f"ratio            {slow_ms / fast_ms:10.1f}    equal frames, {len(stream)} events")


if __name__ == "__main__":
    main()
