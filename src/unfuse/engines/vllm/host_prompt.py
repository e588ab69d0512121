"""Prompts on the host, for vLLM."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unfuse.engines.vllm.prefix_hash import PrefixKey


class HostPrompt:
    """A prompt's embeddings, copied to the host without waiting, with room for one token after it."""

    def __init__(self, embeds: torch.Tensor, stream: torch.cuda.Stream | None):
        """Start the copy.

        Args:
            embeds: ``[L, H]``, complete on the current stream.
            stream: stream of the copy, so that it does not wait for later work; None if the prompt is on the host.
        """
        length, width = embeds.shape
        self.length = length
        self._rows = torch.empty(length + 1, width, dtype=embeds.dtype, pin_memory=stream is not None)
        self._copied: torch.cuda.Event | None = None
        if stream is None:
            self._rows[:length].copy_(embeds)
            return
        stream.wait_stream(torch.cuda.current_stream(embeds.device))
        with torch.cuda.stream(stream):
            self._rows[:length].copy_(embeds, non_blocking=True)
            embeds.record_stream(stream)
            self._copied = torch.cuda.Event()
            self._copied.record(stream)

    @property
    def ready(self) -> bool:
        """True if the copy is complete, so that ``embeds`` does not wait."""
        return self._copied is None or self._copied.query()

    def embeds(self) -> torch.Tensor:
        """Return the embeddings ``[L, H]``; waits for the copy."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._rows[: self.length]

    def with_token(self, row: torch.Tensor) -> torch.Tensor:
        """Append a token's embedding ``[1, H]``. Return ``[L + 1, H]``; the next call overwrites the last row."""
        self.embeds()
        self._rows[self.length :].copy_(row)
        return self._rows

    def copy(self) -> HostPrompt:
        """Return a copy in other memory."""
        other = HostPrompt.__new__(HostPrompt)
        other.length, other._copied = self.length, None
        self.embeds()
        other._rows = self._rows.clone()
        return other


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt that vLLM supports."""

    host: HostPrompt
    prefix: PrefixKey
