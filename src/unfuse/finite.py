"""Detects NaN and infinity in tensors without making the host wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

INVALID_TOKEN: Final = -1
"""Stands for the token of logits that are not finite. The device writes it, and the host raises when it reads it."""


def peaks(values: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each row ``[..., N]``: NaN or infinity if a value of the row is not finite.

    This is one reduction: the maximum norm propagates NaN.
    """
    import torch

    largest: torch.Tensor = torch.linalg.vector_norm(values, float("inf"), dim=-1)
    return largest


def is_finite(values: torch.Tensor) -> torch.Tensor:
    """Return for each row ``[..., N]`` whether all its values are finite: bool ``[...]``, on the device."""
    return peaks(values) < float("inf")


class FiniteFlag:
    """Whether tensors are finite: computed on their device, and copied to the host beside other work."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        """Start the computation; the host does not wait for it."""
        import torch

        self._tensors = tuple(tensor for tensor in tensors if tensor.numel())
        self._copied: torch.cuda.Event | None = None
        self._finite: torch.Tensor | None = None
        if not self._tensors:
            return
        found = torch.stack([is_finite(tensor.detach().flatten()) for tensor in self._tensors])
        if not found.is_cuda:
            self._finite = found
            return
        self._finite = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        self._finite.copy_(found, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(found.device))

    def __bool__(self) -> bool:
        """Return True if every value is finite; waits until the device has computed the tensors."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._finite is None or bool(self._finite.all())


def non_finite_counts(tensors: Sequence[torch.Tensor]) -> str:
    """Describe the values that are not finite; waits for the device."""
    nan = sum(int(tensor.isnan().sum()) for tensor in tensors)
    infinite = sum(int(tensor.isinf().sum()) for tensor in tensors)
    values = sum(tensor.numel() for tensor in tensors)
    kinds = [f"{name} in {count:,}" for name, count in (("NaN", nan), ("infinity", infinite)) if count]
    return f"{' and '.join(kinds) or 'no more such values'} of {values:,} values"
