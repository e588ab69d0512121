"""Damaged files of every format: events or one error of the tree, in bounded time and memory.

``UNFUSE_FUZZ_FILES`` sets how many; a run by hand takes 20,000.
"""

from __future__ import annotations

import os
import resource
from collections import Counter

import numpy as np

from tests.events.formats import write_all
from tests.started import not_hanging
from unfuse.errors import InputError
from unfuse.events import EventStream, read_events
from unfuse.testing import synthetic_stream

FILES = int(os.environ.get("UNFUSE_FUZZ_FILES", "1500"))
MEGABYTES = 600


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three things that happen to files, or are done to them."""
    for _ in range(rng.integers(1, 4)):
        n = len(data)
        at = int(rng.integers(0, max(n, 1)))
        # Headers decide most: half of the damage is done there.
        near = int(rng.integers(0, min(max(n, 1), 400))) if rng.random() < 0.5 else at
        size = int(rng.integers(1, 64))
        match rng.integers(0, 9):
            case 0:
                data = data[:at]
            case 1:
                data = data[:near] + bytes([data[near] ^ (1 << int(rng.integers(8)))]) + data[near + 1 :] if n else data
            case 2:
                data = data[:near] + rng.bytes(size) + data[near + size :]
            case 3:
                data = data[:near] + rng.bytes(size) + data[near:]
            case 4:
                data = data[:near] + data[near + size :]
            case 5:
                data = data[:near] + b"\xff" * min(size, 8) + data[near + min(size, 8) :]
            case 6:
                data = data[:near] + bytes(min(size, 8)) + data[near + min(size, 8) :]
            case 7:
                data = data + data[at:]
            case 8:
                value = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1]))
                data = data[:near] + value.to_bytes(8, "little") + data[near + 8 :]
    return data


def test_no_damage_crashes_hangs_or_escapes_the_tree(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    originals = [path.read_bytes() for path in write_all(whole, synthetic_stream(300, size=(640, 480)))]
    rng = np.random.default_rng(20261124)
    path = tmp_path / "damaged"
    outcomes: Counter[str] = Counter()
    lines = {0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for number in range(FILES):
        data = damaged(originals[number % len(originals)], rng)
        path.write_bytes(data)
        try:
            with not_hanging():
                stream = read_events(path)
        except InputError as error:
            outcomes[type(error).__name__] += 1
            lines.add(str(error).count("\n"))
        else:
            assert isinstance(stream, EventStream)
            assert len(stream.t) == len(stream.x) == len(stream.y) == len(stream.p) > 0
            outcomes["events"] += 1
    assert lines == {0}, "a message is one line"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    assert grown < MEGABYTES, f"{grown:.0f} MB more"
    assert outcomes["EventFileError"] > FILES // 10
    print(dict(outcomes))  # noqa: T201  # pytest -s shows what became of them
