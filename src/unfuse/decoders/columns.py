"""Names of the columns of event files, alike in every format.

A name is compared without regard to case, quotes and brackets, and may end in the unit of time: ``Timestamp [us]``,
``t_ns`` and ``"time"`` are times.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

FIELDS: Final = ("x", "y", "t", "p")
_NAMES: Final = {
    "x": "x xs col cols column columns x_pos x_position x_coord x_coordinate x_addr x_address pos_x px",
    "y": "y ys row rows y_pos y_position y_coord y_coordinate y_addr y_address pos_y py",
    "t": "t ts time times timestamp timestamps time_stamp time_stamps stamp event_time",
    "p": "p ps pol pols polarity polarities",
}
_BY_NAME: Final = {alias: name for name, aliases in _NAMES.items() for alias in aliases.split()}
_UNITS: Final = {
    "ns": "ns nsec nanosecond nanoseconds nanos",
    "us": "us usec microsecond microseconds micros µs μs \ufffds",  # the last is a Latin-1 letter read as UTF-8
    "ms": "ms msec millisecond milliseconds millis",
    "s": "s sec secs second seconds",
}
_BY_UNIT: Final = {alias: unit for unit, aliases in _UNITS.items() for alias in aliases.split()}
_PIXELS: Final = re.compile(r"_(?:px|pixels?)$")
_AFFIXES: Final = re.compile(r"^(?:events?|cd|dvs)[_/]|_(?:event|events|int|float)$")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a file."""

    name: str
    """As the file spells it."""
    unit: str | None = None
    """``ns``, ``us``, ``ms`` or ``s`` if the name of a time says it."""


def column_of(name: str) -> tuple[str, str | None] | None:
    """Return ``x``, ``y``, ``t`` or ``p`` and the unit for the name of a column; None for other names."""
    plain = re.sub(r"[\s\"'`\[\](){}<>:.-]+", "_", name.strip().lower()).strip("_#")
    plain = _AFFIXES.sub("", _PIXELS.sub("", plain))
    if plain in _BY_NAME:
        return _BY_NAME[plain], None
    for alias, unit in _BY_UNIT.items():
        base = plain.removesuffix(alias)
        joined = len(base.rstrip("_")) > 2  # "timeus", but "tus" is no name
        if base != plain and _BY_NAME.get(base.rstrip("_")) == "t" and (base.endswith("_") or joined):
            return "t", unit
    return None


def find_columns(names: Iterable[str]) -> dict[str, Column]:
    """Return the columns among names of a file; a column that is not there is left out.

    Raises:
        ValueError: two names of one column, of which none is its plain name; the message holds both.
    """
    found: dict[str, Column] = {}
    for name in names:
        if (known := column_of(str(name))) is None:
            continue
        field, unit = known
        earlier = found.get(field)
        if earlier is None or name == field:
            found[field] = Column(name, unit)
        elif earlier.name != field:
            raise ValueError(f"both {earlier.name!r:.40} and {name!r:.40}")
    return found
