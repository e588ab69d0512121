"""One Ctrl-C ends any command within seconds, whatever the command is doing.

The first Ctrl-C raises ``KeyboardInterrupt`` in the main thread, so that the command stops in order. Python raises it
between two of its own instructions only, and code in between may swallow it. Therefore a thread beside the command
hears of the signal too, and ends the process after a few seconds, or at the second Ctrl-C. Nothing is lost then either:
every record is on the disk before it is reported, as after ``kill -9``. An interrupted process does not tidy up its
memory, which would take seconds for a large model or dataset.
"""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

import click

GRACE_S: Final = 3.0
"""Time for a command to stop in order."""
_FLUSH_S: Final = 0.5
EXIT_CODE: Final = 130
_Lines = Callable[[], Sequence[str]]


class _Farewell:
    """Lines that tell how to go on, set by the command that runs."""

    lines: _Lines | None = None


def on_interrupt(lines: _Lines | None) -> None:
    """Set the lines that an interrupted command prints, or unset them.

    Args:
        lines: called once the command has stopped, possibly by another thread.
    """
    _Farewell.lines = lines


def say_interrupted() -> None:
    """Print how to go on; ``interrupted`` on stderr if there is nothing to go on with."""
    lines = [] if _Farewell.lines is None else list(_Farewell.lines())
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("interrupted", err=True)


def command_line(context: click.Context, **changes: Any) -> str:
    """Return the command line of a context's command, with some parameters changed."""
    given = context.params | changes
    words, options = context.command_path.split(), []
    for parameter in context.command.params:
        value = given.get(parameter.name or "")
        if isinstance(parameter, click.Argument):
            several = value if isinstance(value, tuple) else (value,)
            words += [str(each) for each in several if each is not None]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options += [parameter.opts[0]] if value else []  # every flag of this project is off by default
        elif isinstance(parameter, click.Option) and value is not None and value != parameter.get_default(context):
            several = value if parameter.multiple else (value,)
            options += [word for each in several for word in (parameter.opts[0], str(each))]
    return shlex.join([*words, *options])


@contextmanager
def interruptible() -> Iterator[None]:
    """End the process some seconds after a Ctrl-C if the body has not ended by then. Main thread only."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    interrupted, ended = threading.Event(), threading.Event()
    watch = threading.Thread(target=_watch, args=(ours, interrupted, ended), daemon=True, name="unfuse-interrupt")
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGINT, _interrupt)
    watch.start()
    try:
        yield
    except SystemExit as exiting:
        if interrupted.is_set():
            _end(exiting.code if isinstance(exiting.code, int) else 1)
        raise
    finally:
        ended.set()
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(before)
        theirs.close()
        watch.join()
        ours.close()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise once: a second error in the middle of an orderly stop would end it with a traceback."""
    signal.signal(signal.SIGINT, lambda number, frame: None)
    raise KeyboardInterrupt


def _watch(signals: socket.socket, interrupted: threading.Event, ended: threading.Event) -> None:
    """Wait for a Ctrl-C; then for a second one or the end of the time."""
    with suppress(OSError):
        while (number := signals.recv(1)) and number[0] != signal.SIGINT:
            pass
        if not number:
            return
        interrupted.set()
        signals.settimeout(GRACE_S)
        with suppress(TimeoutError):
            while (number := signals.recv(1)) and number[0] != signal.SIGINT:
                pass
        if not ended.is_set():
            _end(EXIT_CODE, say_interrupted)


def _end(code: int, say: Callable[[], None] = lambda: None) -> None:
    def write() -> None:
        say()
        sys.stdout.flush()
        sys.stderr.flush()

    for child in multiprocessing.active_children():
        child.kill()
    last = threading.Thread(target=write, daemon=True)  # another thread may hold the lock of the output
    last.start()
    last.join(_FLUSH_S)
    os._exit(code)
