"""``python -m unfuse.batch_inference.worker``: forks processes that load and preprocess, without weights or a GPU.

This process does the slow work (imports, tokenizer: seconds) once. For each socket that it receives, it forks a worker.
The worker serves that socket until the other end closes. So a worker that died is replaced at once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Final

from unfuse.adapters.base import Preprocessor
from unfuse.batch_inference.scenes import prepare
from unfuse.batch_inference.wire import receive, send
from unfuse.processes import Channel, ClosedError
from unfuse.unavailable import Unavailable

QUIET: Final = {
    # One core for each worker. And a process that forks must not have threads.
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"),
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
"""Environment of this process."""


def main(arguments: list[str]) -> None:
    """Fork a worker for each socket.

    Arguments: the control socket's number, model and dtype as for ``open_preprocessor``.
    """
    number, model, dtype = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key at the terminal is for the parent process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers are reaped by the system
    control = Channel.inherited(number)
    from unfuse.errors import UnfuseError
    from unfuse.loading import open_preprocessor

    try:
        preprocessor = open_preprocessor(model, dtype)
    except UnfuseError as error:
        send(control, Unavailable(str(error)))
        return
    send(control, None)
    while True:
        request, sockets, *_ = socket.recv_fds(control.socket, 1, 1)
        if not request:
            return
        channel = Channel.inherited(sockets[0])
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a worker waits for the decoder process that it starts
            try:
                serve(channel, preprocessor)
            except BaseException:  # noqa: BLE001 - the process must end here, not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(0)
        channel.close()


def serve(channel: Channel, preprocessor: Preprocessor) -> None:
    """Send the process id, then a prepared scene for each scene, until the other end closes."""
    with suppress(ClosedError):
        send(channel, os.getpid())
        while True:
            scene, lookup = receive(channel)
            send(channel, prepare(preprocessor, scene, lookup))


if __name__ == "__main__":
    main(sys.argv[1:])
