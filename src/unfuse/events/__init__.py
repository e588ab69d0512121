"""Event cameras: reading, cutting and drawing streams. numpy only."""

from unfuse.events.frames import event_frame, event_frames
from unfuse.events.readers import read_events
from unfuse.events.stream import EventStream, TimeWindow
from unfuse.events.windows import split_equal_count
from unfuse.events.write import write_eventgpt_npy

__all__ = [
    "EventStream",
    "TimeWindow",
    "event_frame",
    "event_frames",
    "read_events",
    "split_equal_count",
    "write_eventgpt_npy",
]
