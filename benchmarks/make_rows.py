"""Make an instruction-set folder of N rows from a few recordings, each used in turn, for a timed run.

python benchmarks/make_rows.py OUT --count 20 [--mp4] recording.npy ...
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from unfuse.events import event_frames, read_events
from unfuse.samples.dataset import MANIFEST_NAME

VIDEO_FRAMES = 20
SENSOR = (480, 640)


def main() -> None:
    """Copy the recordings and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--mp4", action="store_true", help=f"also a video of {VIDEO_FRAMES} event frames for each")
    arguments = parser.parse_args()
    for kind in ("event_npy", *(["mp4"] if arguments.mp4 else [])):
        (arguments.out / kind / "rows").mkdir(parents=True)
    for recording in arguments.recordings:
        shutil.copyfile(recording, arguments.out / "event_npy" / "rows" / recording.name)
        if arguments.mp4:
            write_video(recording, arguments.out / "mp4" / "rows" / f"{recording.stem}.mp4")
    chosen = [arguments.recordings[i % len(arguments.recordings)] for i in range(arguments.count)]
    rows = []
    for i, recording in enumerate(chosen):
        row = {"id": f"{i:03d}-{recording.stem}", "event_data": f"rows/{recording.name}", "conversations": []}
        rows.append(row | ({"mp4_data": f"rows/{recording.stem}.mp4"} if arguments.mp4 else {}))
    (arguments.out / MANIFEST_NAME).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_video(recording: Path, target: Path) -> None:
    """Write event frames of equal event count as an H.264 file of the sensor's size."""
    import av

    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FRAMES)
        stream.height, stream.width = SENSOR
        stream.pix_fmt = "yuv420p"
        for frame in event_frames(read_events(recording), VIDEO_FRAMES):
            picture = np.full((*SENSOR, 3), 255, np.uint8)
            picture[: frame.shape[0], : frame.shape[1]] = frame
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
