"""Child processes of the package: how they start, exchange messages, are limited, die and are replaced.

A child is ``python -m module`` with one end of a socket pair; the socket's number is its first argument. Messages are
frames: the length of the head, the head, and raw bytes with the sizes stated in the head. Two codecs share these
frames. Children that open untrusted files exchange JSON and bytes of bounded size (``Channel.send_json``,
``Channel.receive_json``). Children that run only our own code may exchange pickles (``unfuse.batch_inference.wire``).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, Final, Generic, Self, TypeVar

Buffer = bytes | bytearray | memoryview
MAX_JSON_BYTES: Final = 64 << 20
MAX_BLOBS: Final = 4096
"""Blobs of one message."""
_LENGTH: Final = struct.Struct("<Q")
_TIMEVAL: Final = struct.Struct("@ll")
_RECEIVE_BYTES: Final = 1 << 30
"""Requested from the kernel in one call."""
_EXIT_S: Final = 1.0
"""Time for a child to exit after it closed its channel."""


class ChannelError(Exception):
    """The process at the other end is of no more use; the message is a predicate ("took too long")."""


class ClosedError(ChannelError):
    """The process at the other end closed its socket or is gone."""


class LateError(ChannelError):
    """The process at the other end was silent, or at work, for too long."""


class InvalidReplyError(ChannelError):
    """The process at the other end sent no valid message."""

    def __init__(self) -> None:
        super().__init__("gave no sensible reply")


class ChildError(Exception):
    """A child failed and was ended; the message is a predicate ("crashed (signal 11)")."""


class Channel:
    """Frames over a stream socket. One thread may send while another one receives. A context manager: it closes."""

    def __init__(self, connected: socket.socket):
        """Take over a blocking socket; its other end is in another process."""
        self.socket = connected
        self._silence_s = 0.0

    @classmethod
    def inherited(cls, number: str | int) -> Self:
        """Return the channel to the parent, in a child that was started with this file descriptor."""
        connected = socket.socket(fileno=int(number))
        connected.set_inheritable(False)
        return cls(connected)

    def limit_silence(self, seconds: float) -> None:
        """Let every later wait for bytes, or for room to send them, end in ``LateError`` after some seconds."""
        self._silence_s = seconds
        self._set_timeout(socket.SO_RCVTIMEO, seconds)
        self._set_timeout(socket.SO_SNDTIMEO, seconds)

    def send(self, head: bytes, blobs: Iterable[Buffer] = ()) -> None:
        """Send one frame; errors as ``receive_into``."""
        try:
            self.socket.sendall(_LENGTH.pack(len(head)) + head)
            for blob in blobs:
                self.socket.sendall(blob)
        except OSError as error:
            raise self._failure(error, "took no message") from None

    def receive_head(self, max_bytes: int | None = None, deadline: float | None = None) -> bytearray:
        """Return the head of the next frame; its blobs are left to ``receive_into``.

        Raises:
            InvalidReplyError: the head is larger than ``max_bytes``.
            ChannelError: as ``receive_into``.
        """
        length = bytearray(_LENGTH.size)
        self.receive_into(length, deadline)
        (size,) = _LENGTH.unpack(length)
        if max_bytes is not None and size > max_bytes:
            raise InvalidReplyError
        head = bytearray(size)
        self.receive_into(head, deadline)
        return head

    def receive_into(self, memory: bytearray | memoryview, deadline: float | None = None) -> None:
        """Fill contiguous memory with the next bytes, before a deadline on the clock of ``time.monotonic``.

        Raises:
            ClosedError: the other process is gone.
            LateError: the deadline or the limit of silence is over.
        """
        view = memoryview(memory)
        try:
            while view:
                if deadline is not None:
                    if (seconds := deadline - time.monotonic()) <= 0:
                        raise LateError("took too long")
                    self._set_timeout(socket.SO_RCVTIMEO, seconds)
                # One call for all bytes if the system can: each call takes the interpreter's lock once more.
                count = self.socket.recv_into(view[:_RECEIVE_BYTES], 0, socket.MSG_WAITALL)
                if not count:
                    raise ClosedError("closed its channel")
                view = view[count:]
        except OSError as error:
            late = "took too long" if deadline is not None else f"sent nothing for {self._silence_s:g} s"
            raise self._failure(error, late) from None
        finally:
            if deadline is not None:
                self._set_timeout(socket.SO_RCVTIMEO, self._silence_s)

    def send_json(self, message: Mapping[str, Any], blobs: Sequence[Buffer] = ()) -> None:
        """Send a message and raw bytes; errors as ``send``. The key ``sizes`` is taken."""
        sizes = [memoryview(blob).nbytes for blob in blobs]
        self.send(json.dumps({**message, "sizes": sizes}).encode(), blobs)

    def receive_json(self, max_bytes: int = 0, deadline: float | None = None) -> tuple[dict[str, Any], list[bytearray]]:
        """Return a message and its blobs from a process that may send anything.

        Raises:
            InvalidReplyError: no valid message, more than ``MAX_BLOBS`` blobs, or more than ``max_bytes`` in them.
            ChannelError: as ``receive_into``.
        """
        try:
            message = json.loads(self.receive_head(MAX_JSON_BYTES, deadline))
            sizes = [int(size) for size in message.pop("sizes")]
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise InvalidReplyError from None
        if len(sizes) > MAX_BLOBS or min(sizes, default=0) < 0 or sum(sizes) > max_bytes:
            raise InvalidReplyError
        blobs = [bytearray(size) for size in sizes]
        for blob in blobs:
            self.receive_into(blob, deadline)
        return message, blobs

    def shut_down(self) -> None:
        """End the exchange for both processes; wakes every thread that waits here."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; a second call does nothing."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_timeout(self, option: int, seconds: float) -> None:
        """Set the kernel's limit, 0 for none: with Python's own, a large message would take many system calls."""
        timeval = _TIMEVAL.pack(int(seconds), max(int(seconds % 1 * 1e6), 1) if seconds else 0)
        self.socket.setsockopt(socket.SOL_SOCKET, option, timeval)

    @staticmethod
    def _failure(error: OSError, late: str) -> ChannelError:
        return LateError(late) if isinstance(error, BlockingIOError) else ClosedError(str(error))


class Child:
    """One ``python -m module`` and the channel to it. ``close`` in a forked process leaves it running."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        env: Mapping[str, str],
        own_session: bool = False,
        output: IO[bytes] | int | None = subprocess.DEVNULL,
        files: Sequence[int] = (),
    ):
        """Start the process; it has the module path of this process.

        Args:
            module: a module with a ``__main__`` part; it takes the socket's number as its first argument.
            arguments: the further arguments.
            env: environment variables; ``PYTHONPATH`` is added.
            own_session: the process leads a session and process group, away from the terminal's keys. ``kill`` ends
                the whole group. Processes below a group's leader stay in it, so that they end with the leader.
            output: file for stdout and stderr; None shares those of this process.
            files: file descriptors that the process inherits.
        """
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self._owner = os.getpid()
        self._has_group = own_session
        """Whether the process may still lead a group: later its number may be that of another group."""
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(theirs.fileno(), *files),
                    env={**env, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=own_session,
                )
        except BaseException:
            self.channel.close()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """True if it runs and this process has started it: a forked process must not share its parent's channel."""
        return self._owner == os.getpid() and self._process.poll() is None

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, negative for a signal; None if the process still runs after some seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace_s: float) -> int:
        """Return the exit code; kill the process if it does not exit within some seconds."""
        self.wait(grace_s)
        return self.kill()

    def failure(self, error: Exception) -> str:
        """Return the state of the process as a predicate, after an error of its channel or of its reply's content."""
        if isinstance(error, ClosedError) and (code := self.wait(_EXIT_S)) is not None:
            return f"{'crashed' if code < 0 else 'ended'} ({exit_status(code)})"
        return str(error if isinstance(error, LateError) else InvalidReplyError())

    def kill(self) -> int:
        """End the process, with its group if it leads one; wakes threads that wait for it. Returns the exit code."""
        if self._has_group:
            self._has_group = False
            with suppress(ProcessLookupError, PermissionError):  # no process of the group is left
                os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        code = self._process.wait()
        self.channel.shut_down()
        return code

    def close(self) -> None:
        """End the process and close the channel; a second call does nothing."""
        if self._owner == os.getpid():
            self.kill()
        self.channel.close()


_Child = TypeVar("_Child", bound=Child)


class ChildSlot(Generic[_Child]):
    """At most one child: started on first use, replaced once it has failed. For one thread at a time."""

    def __init__(self, start: Callable[[], _Child]):
        """Start nothing yet."""
        self._start = start
        self._child: _Child | None = None

    def child(self) -> _Child:
        """Return the child; start a new child if there is none, if it has died, or if our parent process owns it."""
        if self._child is None or not self._child.usable:
            self.close()
            self._child = self._start()
        return self._child

    @contextmanager
    def exchange(self) -> Iterator[_Child]:
        """Give the child for one request and its replies; any failure meanwhile ends the child.

        Raises:
            ChildError: the child died, was late, or sent a reply that the block could not use (``ValueError``,
                ``LookupError``, ``TypeError`` or ``ArithmeticError``).
        """
        child = self.child()
        try:
            yield child
        except (ChannelError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            reason = child.failure(error)
            self.close()
            raise ChildError(reason) from None
        except BaseException:
            self.close()  # the rest of this reply would be taken for the next one
            raise

    def close(self) -> None:
        """End the child; a second call does nothing."""
        if self._child is not None:
            self._child.close()
            self._child = None


def exit_status(code: int) -> str:
    """Return the words for an exit code: "signal 9" or "exit code 3"."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def serve_json(answer: Callable[[dict[str, Any]], Iterable[tuple[Mapping[str, Any], Sequence[Buffer]]]]) -> None:
    """Answer JSON requests in a child until its parent closes the channel.

    First arguments of the process: the socket's number, bytes of address space, bytes of the largest file to write.

    Args:
        answer: gives the messages and blobs of a reply, one after the other.
    """
    import resource  # not on every system that reads events

    number, memory_bytes, file_bytes = (int(text) for text in sys.argv[1:4])
    limits = ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, file_bytes), (resource.RLIMIT_CORE, 0))
    for kind, limit in limits:
        _, hard = resource.getrlimit(kind)
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
    with Channel.inherited(number) as channel, suppress(ClosedError):
        while True:
            request, _ = channel.receive_json()
            for message, blobs in answer(request):
                channel.send_json(message, blobs)
