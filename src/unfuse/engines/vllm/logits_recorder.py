"""Logits of single requests, recorded when vLLM samples a token, and forced tokens that replace its choice.

vLLM returns logits as Python objects, one for each token of the vocabulary: as slow as the prefill itself. A logits
processor reads them on the device; it is part of vLLM's public interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from unfuse.engines.vllm.finite_watch import FiniteWatch, StepFlags

KEY: Final = "unfuse_recorder"
"""Key of ``SamplingParams.extra_args``: the name of the request."""


class LogitsRecorder:
    """Records the logits of one request, and forces or masks its tokens."""

    def __init__(self, forced: Sequence[int] = (), eos_masked: torch.Tensor | None = None):
        """Record nothing yet.

        Args:
            forced: tokens to choose regardless of the logits.
            eos_masked: int64, on the device: end tokens that must not be chosen.
        """
        self._forced = forced
        self._eos_masked = eos_masked
        self._logits: dict[int, torch.Tensor] = {}

    def __getitem__(self, num_tokens: int) -> torch.Tensor:
        """Return the logits, float32 ``[V]``, after so many new tokens, before any mask."""
        return self._logits[num_tokens]

    def __call__(self, token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Record one row of logits. vLLM calls this, and lets it write to the row."""
        count = len(token_ids)
        # vLLM calls this for every chunk of a chunked prefill; the last chunk counts.
        self._logits[count] = logits.clone()
        if count < len(self._forced):
            logits.fill_(float("-inf"))
            logits[self._forced[count]] = 0.0
        elif self._eos_masked is not None:
            logits.index_fill_(-1, self._eos_masked, float("-inf"))
        return logits


class RecorderRegistry:
    """The recorders and watches of one engine's requests, by request name."""

    def __init__(self) -> None:
        self._recorders: dict[str, LogitsRecorder | FiniteWatch] = {}

    def __setitem__(self, name: str, recorder: LogitsRecorder | FiniteWatch) -> None:
        self._recorders[name] = recorder

    def finite(self, name: str, num_tokens: int) -> bool:
        """Return whether a request's logits after so many new tokens were finite; True if nothing watches them."""
        watch = self._recorders.get(name)
        return not isinstance(watch, FiniteWatch) or watch.take(num_tokens)

    def discard(self, name: str) -> None:
        """Forget a request's recorder, if it has one."""
        self._recorders.pop(name, None)

    def processor(self) -> type:
        """Return the logits processor for ``EngineArgs``: a class, since vLLM makes the instance."""
        from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

        recorders = self._recorders

        class RecordingProcessor(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM need not be installed
            def is_argmax_invariant(self) -> bool:
                return False

            def new_req_logits_processor(self, params: Any) -> LogitsRecorder | FiniteWatch | None:
                return recorders.get((params.extra_args or {}).get(KEY, ""))

            def apply(self, logits: torch.Tensor) -> torch.Tensor:
                flags = StepFlags(logits)
                for row, bound in self.req_info.items():
                    # vLLM binds the list of the request's new tokens to the processor.
                    if isinstance(bound.func, FiniteWatch):
                        bound.func.add(len(bound.args[-1]), flags, row)
                    else:
                        logits[row] = bound(logits[row])
                return logits

        return RecordingProcessor
