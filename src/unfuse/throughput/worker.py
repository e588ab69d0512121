"""``python -m unfuse.throughput.worker``: processes that load and preprocess, without weights and without a GPU.

What costs seconds (imports, tokenizer) is done once, in this process; for each socket that it is then given it forks a
worker, which serves that socket until the other end closes. So a worker that died is replaced in no time.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Final

from unfuse.adapters.base import Front
from unfuse.throughput.scenes import prepare
from unfuse.throughput.wire import Closed, receive, send

QUIET: Final = {
    # One core a worker: they are as many as there are cores. And forking wants a process without threads.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
"""The environment of this process."""


def main(arguments: list[str]) -> None:
    """Arguments: the number of the control socket, and model and dtype as ``open_front`` takes them."""
    number, model, dtype = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key at the terminal is for the process that started this one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a worker that ended
    control = socket.socket(fileno=int(number))
    from unfuse.errors import UnfuseError
    from unfuse.loading import open_front

    try:
        front = open_front(model, dtype)
    except UnfuseError as error:
        send(control, str(error))
        return
    send(control, None)
    while True:
        said, sockets, *_ = socket.recv_fds(control, 1, 1)
        if not said:
            return
        place = socket.socket(fileno=sockets[0])
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # how its decoders' processes end matters to a worker
            try:
                serve(place, front)
            except BaseException:  # noqa: BLE001 - the last words of a process that must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(0)
        place.close()


def serve(place: socket.socket, front: Front) -> None:
    """Says who it is, then answers scenes with prepared scenes until the other end closes."""
    with suppress(Closed):
        send(place, os.getpid())
        while True:
            scene, known = receive(place)
            send(place, prepare(front, scene, known))


if __name__ == "__main__":
    main(sys.argv[1:])
