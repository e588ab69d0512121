"""Finds logits that are not finite in vLLM's steps: one reduction and one copy for all requests of a step."""

from __future__ import annotations

import torch


class StepFlags:
    """Flags of the rows of one step. They are copied to the host beside other work, before the step's tokens."""

    def __init__(self, logits: torch.Tensor):
        """Start the copy.

        Args:
            logits: ``[B, V]`` or ``[V]``. Minus infinity is no fault here: vLLM has masked end tokens by it before.
        """
        # The maximum propagates NaN, and a comparison with NaN is false.
        finite = logits.amax(-1).abs() < float("inf")
        self._copied: torch.cuda.Event | None = None
        self._finite = finite.reshape(-1)
        if finite.is_cuda:
            self._finite = torch.empty(finite.numel(), dtype=finite.dtype, pin_memory=True)
            self._finite.copy_(finite.reshape(-1), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def __getitem__(self, row: int) -> bool:
        """Return whether the logits of a row are finite. The host waits only if the step still runs."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return bool(self._finite[row])


class FiniteWatch:
    """Flags of one request, by the number of tokens before."""

    def __init__(self) -> None:
        self._flags: dict[int, tuple[StepFlags, int]] = {}

    def add(self, num_tokens: int, flags: StepFlags, row: int) -> None:
        """Record a row of a step. vLLM repeats the row for every chunk of a chunked prefill; the last chunk counts."""
        self._flags[num_tokens] = flags, row

    def __call__(self, token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Record one row alone: vLLM's interface for the logits of one request."""
        self.add(len(token_ids), StepFlags(logits), 0)
        return logits

    def take(self, num_tokens: int) -> bool:
        """Return whether the logits after so many new tokens were finite, and forget them."""
        if (found := self._flags.pop(num_tokens, None)) is None:
            return True
        flags, row = found
        return flags[row]
