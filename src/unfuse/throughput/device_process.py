"""``python -m unfuse.throughput.device_process``: one device of several, in a process of its own.

Over its socket it is told its job, says what it is, and then takes scenes and gives answers until there are no more.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
from typing import Any, Final

from unfuse.errors import as_ours
from unfuse.throughput.device import DeviceRunner
from unfuse.throughput.flow import Answer, Begun
from unfuse.throughput.scenes import PreparedScene, Scene, reason_of
from unfuse.throughput.wire import Closed, receive, send
from unfuse.unavailable import Unavailable

ENDED: Final = None
"""In the place of a scene: there will be no more."""


def main(arguments: list[str]) -> int:
    """Argument: the number of the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key at the terminal is for the process that started this one
    with socket.socket(fileno=int(arguments[0])) as place:
        try:
            _serve(place)
        except Closed:
            return 1  # nobody is left to tell
        except Exception as error:
            ours = as_ours(error)
            if ours is None:
                raise
            send(place, Unavailable(reason_of(ours)))
            return ours.exit_code
    return 0


def _serve(place: socket.socket) -> None:
    scenes: queue.SimpleQueue[Scene | None] = queue.SimpleQueue()
    with DeviceRunner(receive(place)) as runner:
        send(place, runner.facts)
        threading.Thread(target=_take_in, args=(place, scenes), daemon=True).start()
        ended = threading.Lock()

        def following() -> Scene | None:
            with ended:
                scene = scenes.get()
                if scene is ENDED:
                    scenes.put(ENDED)  # every thread asks
                return scene

        def emit(answer: Answer) -> None:
            send(place, answer)

        def begun(scene: PreparedScene) -> None:
            send(place, Begun(scene.asked[0].sample_id))

        send(place, runner.answer(following, emit, begun))


def _take_in(place: socket.socket, scenes: queue.SimpleQueue[Any]) -> None:
    try:
        while (scene := receive(place)) is not ENDED:
            scenes.put(scene)
        scenes.put(ENDED)
    except Closed:
        os._exit(1)  # who gave the scenes is gone: no answer would be filed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
