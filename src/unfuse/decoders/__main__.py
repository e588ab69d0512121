"""The decoders' process: JSON requests, answered by columns of events in a file, and by messages.

python -m unfuse.decoders SOCKET MEMORY_BYTES FILE_BYTES FILE_DESCRIPTOR
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import IO, Any, Final

from unfuse.decoders.batches import RefusedError
from unfuse.processes import serve_json

KINDS: Final = {
    "dsec": "dsec",
    "rectify_map": "dsec_rectify_map",
    "evt3": "prophesee_evt3",
    "aedat4": "inivation_aedat4",
}
Message = tuple[dict[str, Any], tuple[()]]


def answer(request: dict[str, Any]) -> Iterator[Message]:
    """Yield the length of each batch, then facts of the recording or the reason why it cannot be read."""
    try:
        yield from _decoded(request)
    except RefusedError as error:
        yield {"refused": error.found, "expected": error.expected}, ()
    except ImportError as error:
        yield {"missing": error.name or str(error)}, ()
    except MemoryError:
        yield {"failed": "more memory than it may take"}, ()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is no Exception
        yield {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}, ()


def _decoded(request: dict[str, Any]) -> Iterator[Message]:
    decoder = importlib.import_module(f"unfuse.decoders.{KINDS[request['kind']]}")
    if "edges" in request:
        yield decoder.inspect(request["path"], request["edges"], request["numbers"]), ()
        return
    decode = decoder.decode_events if request.get("numbered") else decoder.decode
    decoded = decode(request["path"], request["start"], request["stop"])
    with open(int(sys.argv[4]), "wb", buffering=0, closefd=False) as file:
        file.seek(0)
        file.truncate()
        for columns in decoded.batches:
            for column in columns:
                _write(file, column.tobytes())
            yield {"batch": len(columns[0])}, ()
    yield {"sensor_size": decoded.sensor_size, "usual_size": decoded.usual_size, "span": decoded.span}, ()


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


if __name__ == "__main__":
    serve_json(answer)
