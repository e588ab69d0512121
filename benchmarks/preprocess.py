"""Compare ``CLIPImageProcessor`` (Pillow) with ``ClipPixels``: five event frames to CLIP's pixels at 336.

Both on one core, in turn, on the same frames; the pixels are compared before anything is printed.

    python benchmarks/preprocess.py                      synthetic events, 640x480
    python benchmarks/preprocess.py --events recording.npy
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
from transformers import CLIPImageProcessorPil

from unfuse.adapters.pixels import ClipPixels
from unfuse.events import event_frames, read_events
from unfuse.testing import synthetic_stream

_REPEATS = 40


def main() -> None:
    """Compute, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=Path, help="a recording; default: synthetic")
    arguments = parser.parse_args()
    stream = read_events(arguments.events) if arguments.events else synthetic_stream(150_000, size=(640, 480))
    frames = event_frames(stream)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    fast = ClipPixels(processor)
    if not np.array_equal(fast(frames), processor(frames, return_tensors="np")["pixel_values"]):
        raise SystemExit("the pixels differ")
    times: dict[str, list[float]] = {"CLIPImageProcessor": [], "ClipPixels": []}
    for _ in range(_REPEATS):
        start = time.perf_counter_ns()
        processor(frames, return_tensors="np")
        between = time.perf_counter_ns()
        fast(frames)
        times["CLIPImageProcessor"].append((between - start) / 1e6)
        times["ClipPixels"].append((time.perf_counter_ns() - between) / 1e6)
    for name, values in times.items():
        print(f"{name:<20} {median(values):8.2f} ms for {len(frames)} frames")
    slow, quick = (median(values) for values in times.values())
    print(f"ratio                {slow / quick:8.1f}    equal pixels, bit for bit")


if __name__ == "__main__":
    main()
