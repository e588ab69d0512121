"""From logits to the next token."""

from __future__ import annotations

from typing import Self

import torch

from unfuse.stages import Sampling


class TokenChooser:
    """Chooses the tokens of one answer; seeded, so that it can be repeated."""

    def __init__(self, sampling: Sampling, end_ids: torch.Tensor, device: torch.device):
        self._sampling = sampling
        self._end_ids = end_ids
        self._generator = torch.Generator(device=device).manual_seed(sampling.seed)

        self._mark = self._generator.get_state()

    def marked(self) -> Self:
        """Remembers the generator's present state, for ``rewind``."""
        self._mark = self._generator.get_state()
        return self

    def rewind(self) -> None:
        """Goes back to the remembered state: what follows is chosen as before."""
        self._generator.set_state(self._mark)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """One token id from ``[V]`` logits, as a 0-d int64 tensor on their device.

        Temperature first, then the nucleus: the smallest set of tokens whose probabilities sum to at least ``top_p``
        (Holtzman et al., arXiv 1904.09751).
        """
        if self._sampling.ignore_eos:
            logits = logits.index_fill(0, self._end_ids, float("-inf"))
        if self._sampling.temperature == 0:
            return logits.argmax()
        probabilities = torch.softmax(logits.float() / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            outside = ordered.cumsum(-1) - ordered >= self._sampling.top_p
            probabilities = probabilities.index_fill(0, order[outside], 0.0)
        return torch.multinomial(probabilities, 1, generator=self._generator)[0]
