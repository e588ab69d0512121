"""Event cameras: reading, slicing and drawing of streams. Only ``on_device`` needs torch."""

from unfuse.events.frames import event_frame, event_frames
from unfuse.events.readers import read_events
from unfuse.events.representations import event_histogram, time_surface, voxel_grid
from unfuse.events.stream import EventStream, TimeWindow
from unfuse.events.windows import (
    slice_by_event_count,
    slice_by_time,
    split_equal_count,
    split_equal_time,
    time_windows,
)
from unfuse.events.write import write_eventgpt_npy

__all__ = [
    "EventStream",
    "TimeWindow",
    "event_frame",
    "event_frames",
    "event_histogram",
    "read_events",
    "slice_by_event_count",
    "slice_by_time",
    "split_equal_count",
    "split_equal_time",
    "time_surface",
    "time_windows",
    "voxel_grid",
    "write_eventgpt_npy",
]
