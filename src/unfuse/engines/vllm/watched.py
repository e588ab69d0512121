"""Logits of single requests, seen where vLLM is about to choose a token, and tokens that it is made to choose.

vLLM hands out logits as Python objects, one a token of the vocabulary: as slow as the prefill itself. A logits
processor, which is a public way into its sampler, sees the row on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

KEY: Final = "unfuse_watched"
"""Of ``SamplingParams.extra_args``: the name under which ``Watched`` knows the request."""


class Rows:
    """What one request's tokens are chosen from."""

    def __init__(self, forced: Sequence[int] = (), barred: torch.Tensor | None = None):
        """Before the request is given to vLLM.

        Args:
            forced: tokens to choose, whatever the logits say.
            barred: int64, on the device: tokens never to choose.
        """
        self._forced = forced
        self._barred = barred
        self._rows: dict[int, torch.Tensor] = {}

    def __getitem__(self, written: int) -> torch.Tensor:
        """float32 ``[V]`` after so many written tokens, before anything is barred or forced."""
        return self._rows[written]

    def __call__(self, written: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Called by vLLM with its own row of logits, which may be written to."""
        at = len(written)
        # A prompt computed in several pieces comes by once a piece: the last one counts.
        self._rows[at] = logits.clone()
        if at < len(self._forced):
            logits.fill_(float("-inf"))
            logits[self._forced[at]] = 0.0
        elif self._barred is not None:
            logits.index_fill_(-1, self._barred, float("-inf"))
        return logits


class Watched:
    """The requests of one engine that are watched, by name."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}

    def __setitem__(self, name: str, rows: Rows) -> None:
        self._rows[name] = rows

    def pop(self, name: str) -> None:
        """Forgets a request; one that is not watched is no error."""
        self._rows.pop(name, None)

    def processor(self) -> type:
        """The logits processor for ``EngineArgs``: a class, since vLLM makes the instance."""
        from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

        watched = self._rows

        class Processor(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM need not be installed
            def is_argmax_invariant(self) -> bool:
                return False

            def new_req_logits_processor(self, params: Any) -> Rows | None:
                return watched.get((params.extra_args or {}).get(KEY, ""))

        return Processor
