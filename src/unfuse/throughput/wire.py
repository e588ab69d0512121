"""Values between two of our own processes over a socket: what holds tensors, without copying them through a pickle.

A message is a pickle whose tensors are left out, then the tensors' bytes one after the other. The receiver may have
them put into pinned memory at once, from where a device takes them without waiting.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from typing import Any, Final

import torch

_LENGTH: Final = struct.Struct("<Q")
_AT_ONCE: Final = 1 << 30
"""Bytes asked of the kernel in one call."""


class Closed(Exception):  # noqa: N818 - not an error by itself: the other side may be done
    """The other process has closed its end, or is gone."""


def send(place: socket.socket, value: Any) -> None:
    """Sends one value.

    Args:
        place: a stream socket; the other end is in a process of ours.
        value: anything that pickles; its tensors lie on the CPU.

    Raises:
        Closed: nobody is there any more.
    """
    body = io.BytesIO()
    pickler = _Pickler(body)
    pickler.dump(value)
    kinds = [(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in pickler.tensors]
    head = pickle.dumps((kinds, body.getvalue()), protocol=5)
    try:
        place.sendall(_LENGTH.pack(len(head)) + head)
        for tensor in pickler.tensors:
            if tensor.numel():
                place.sendall(_bytes(tensor))
    except OSError as error:
        raise Closed(str(error)) from None


def receive(place: socket.socket, *, pinned: bool = False) -> Any:
    """The next value.

    Args:
        place: as for ``send``.
        pinned: put tensors into pinned memory.

    Raises:
        Closed: nobody is there any more.
    """
    head = bytearray(_LENGTH.unpack(_exactly(place, bytearray(_LENGTH.size)))[0])
    kinds, body = pickle.loads(_exactly(place, head))  # noqa: S301 - of our own process, over a socket of our own
    tensors = []
    for name, shape in kinds:
        tensor = torch.empty(shape, dtype=getattr(torch, name), pin_memory=pinned)
        if tensor.numel():
            _exactly(place, _bytes(tensor))
        tensors.append(tensor)
    return _Unpickler(io.BytesIO(body), tensors).load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out, each once however often it is held."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []
        self._seen: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not torch.Tensor:
            return None
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self.tensors)
            self.tensors.append(value.detach().contiguous())
        return self._seen[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]):
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, index: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._tensors[index]
        return tensor


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _exactly(place: socket.socket, memory: bytearray | memoryview) -> bytearray | memoryview:
    view = memoryview(memory)
    try:
        while view:
            # One call for all of it where the system can: each takes the interpreter's lock once more.
            count = place.recv_into(view[:_AT_ONCE], 0, socket.MSG_WAITALL)
            if not count:
                raise Closed("closed")
            view = view[count:]
    except OSError as error:
        raise Closed(str(error)) from None
    return memory
