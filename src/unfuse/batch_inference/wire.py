"""Values between two processes that run our own code: pickles, with tensors beside them.

A frame's head is a pickle without the tensors; the tensors' memory follows as raw bytes, without a copy. The receiver
can have tensors put into pinned memory, so that a device reads them without waiting.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from unfuse.processes import Channel


def send(channel: Channel, value: Any) -> None:
    """Send one value.

    Args:
        channel: the other end is in a process of ours.
        value: anything that pickles; its tensors lie on the CPU.

    Raises:
        ClosedError: the other process is gone.
        LateError: the other process does not receive.
    """
    body = io.BytesIO()
    pickler = _Pickler(body)
    pickler.dump(value)
    layouts = [(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in pickler.tensors]
    head = pickle.dumps((layouts, body.getvalue()), protocol=5)
    channel.send(head, (_bytes(tensor) for tensor in pickler.tensors if tensor.numel()))


def receive(channel: Channel, *, pinned: bool = False) -> Any:
    """Return the next value.

    Args:
        channel: as for ``send``.
        pinned: put tensors into pinned memory.

    Raises:
        ClosedError: the other process is gone.
        LateError: the channel's limit of silence is over.
    """
    layouts, body = pickle.loads(channel.receive_head())  # noqa: S301 - from our own code, over a socket of our own
    tensors = []
    for name, shape in layouts:
        tensor = torch.empty(shape, dtype=getattr(torch, name), pin_memory=pinned)
        if tensor.numel():
            channel.receive_into(_bytes(tensor))
        tensors.append(tensor)
    return _Unpickler(io.BytesIO(body), tensors).load()


class _Pickler(pickle.Pickler):
    """Leave tensors out; a tensor that is referenced twice is sent once."""

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
    """Return a contiguous tensor's memory."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)
