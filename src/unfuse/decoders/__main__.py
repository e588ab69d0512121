"""The process: a request a line on its input, a reply a line on its output, events in the file it was handed.

python -m unfuse.decoders FILE_DESCRIPTOR MEMORY_BYTES FILE_BYTES
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from typing import Any, Final, TextIO

from unfuse.decoders.batches import RefusedError

KINDS: Final = {
    "dsec": "dsec",
    "rectify_map": "dsec_rectify_map",
    "evt3": "prophesee_evt3",
    "aedat4": "inivation_aedat4",
}


def main() -> None:
    """Serves until its input ends."""
    target, memory, room = (int(text) for text in sys.argv[1:])
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, room), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        # Whoever started this process may have less to give.
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
    # A library that prints would be taken for a reply.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    for line in sys.stdin:
        os.ftruncate(target, 0)
        os.lseek(target, 0, os.SEEK_SET)
        _reply(replies, _served(json.loads(line), target, replies))


def _served(request: dict[str, Any], target: int, replies: TextIO) -> dict[str, Any]:
    try:
        decoder = importlib.import_module(f"unfuse.decoders.{KINDS[request['kind']]}")
        if "edges" in request:
            return {"done": True, **decoder.look(request["path"], request["edges"], request["numbers"])}
        decode = decoder.decode_events if request.get("numbered") else decoder.decode
        decoded = decode(request["path"], request["start"], request["stop"])
        for columns in decoded.batches:
            for column in columns:
                _write(target, column.tobytes())
            _reply(replies, {"events": len(columns[0])})
    except RefusedError as error:
        return {"refused": error.found, "expected": error.expected}
    except ImportError as error:
        return {"missing": error.name or str(error)}
    except MemoryError:
        return {"failed": "more memory than it may take"}
    except BaseException as error:  # a panic of a Rust library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return {"done": True, "sensor_size": decoded.sensor_size, "span": decoded.span}


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _reply(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
