"""Memory of a loaded model's tensors."""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def own_tensors(model: _Model) -> _Model:
    """Copy every CPU tensor of a model out of its file; return the model.

    safetensors maps a file into memory and does not read it. Whoever writes to the file changes the weights of a loaded
    model with it, and the fingerprint stays. Shared tensors stay shared. Tensors on other devices are copies already.
    """
    copies: dict[tuple[object, ...], torch.Tensor] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        # Quantised tensors of other libraries are subclasses; their own memory is not reached by ``data``.
        if tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor:
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if key not in copies:
                copies[key] = tensor.data.clone(memory_format=torch.preserve_format)
            tensor.data = copies[key]
    return model
