"""``python -m unfuse.batch_inference.device_process``: one device of several, in a process of its own.

The process receives its job, sends its facts, and then receives scenes and sends answers until there are no more.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from typing import Any, Final

from unfuse.batch_inference.answer import Answer, SceneStarted
from unfuse.batch_inference.device import DeviceRunner
from unfuse.batch_inference.scenes import PreparedScene, SceneQuestions, reason_of
from unfuse.batch_inference.wire import receive, send
from unfuse.errors import as_ours
from unfuse.processes import Channel, ClosedError
from unfuse.unavailable import Unavailable

ENDED: Final = None
"""Sent instead of a scene: there are no more."""


def main(arguments: list[str]) -> int:
    """Serve one device; argument: the socket's number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key at the terminal is for the parent process
    with Channel.inherited(arguments[0]) as channel:
        try:
            _serve(channel)
        except ClosedError:
            return 1  # the parent is gone
        except Exception as error:
            ours = as_ours(error)
            if ours is None:
                raise
            send(channel, Unavailable(reason_of(ours)))
            return ours.exit_code
    return 0


def _serve(channel: Channel) -> None:
    scenes: queue.SimpleQueue[SceneQuestions | None] = queue.SimpleQueue()
    with DeviceRunner(receive(channel)) as runner:
        send(channel, runner.facts)
        threading.Thread(target=_receive_scenes, args=(channel, scenes), daemon=True).start()
        lock = threading.Lock()

        def next_scene() -> SceneQuestions | None:
            with lock:
                scene = scenes.get()
                if scene is ENDED:
                    scenes.put(ENDED)  # for the other threads
                return scene

        def emit(answer: Answer) -> None:
            send(channel, answer)

        def started(scene: PreparedScene) -> None:
            send(channel, SceneStarted(scene.questions[0].question_id))

        send(channel, runner.answer(next_scene, emit, started))


def _receive_scenes(channel: Channel, scenes: queue.SimpleQueue[Any]) -> None:
    try:
        while (scene := receive(channel)) is not ENDED:
            scenes.put(scene)
        scenes.put(ENDED)
    except ClosedError:
        os._exit(1)  # the parent is gone: no answer would be filed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
