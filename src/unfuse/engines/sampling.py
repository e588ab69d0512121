"""From logits to the next token."""

from __future__ import annotations

from typing import Self

import torch

from unfuse.stages import Sampling


class TokenChooser:
    """Chooses the tokens of one answer, or of several answers together; seeded, so that it can be repeated.

    Every row of a batch is drawn with the same noise: each gets the tokens that it would get alone.
    """

    def __init__(self, sampling: Sampling, end_ids: torch.Tensor, device: torch.device):
        self._greedy = sampling.temperature == 0
        self._barred = end_ids if sampling.ignore_eos else None
        # On the device, so that a captured graph serves every setting.
        self._temperature = torch.empty((), device=device)
        self._top_p = torch.empty((), device=device)
        self.generator = torch.Generator(device=device)
        self.set(sampling)

    def set(self, sampling: Sampling) -> None:
        """Begins another answer with other numbers of the same kind."""
        self._temperature.fill_(sampling.temperature)
        # All of the tail, where a sum of all probabilities may be a little under or over 1.
        self._top_p.fill_(sampling.top_p if sampling.top_p < 1 else 2)
        self.generator.manual_seed(sampling.seed)
        self._mark = self.generator.get_state()

    def marked(self) -> Self:
        """Remembers the generator's present state, for ``rewind``."""
        self._mark = self.generator.get_state()
        return self

    @property
    def mark(self) -> torch.Tensor:
        """The remembered state."""
        return self._mark

    def rewind(self) -> None:
        """Goes back to the remembered state: what follows is chosen as before."""
        self.generator.set_state(self._mark)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids, int64 ``[...]``, from ``[..., V]`` logits, on their device and without a look at them.

        Temperature first, then the nucleus: the smallest set of tokens whose probabilities sum to at least ``top_p``
        (Holtzman et al., arXiv 1904.09751). A token is drawn as the largest of the probabilities over exponential
        noise, as ``torch.multinomial`` draws it.
        """
        if self._barred is not None:
            logits = logits.index_fill(-1, self._barred, float("-inf"))
        if self._greedy:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits.float() / self._temperature, dim=-1)
        ordered, order = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= self._top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
        noise = torch.empty(logits.shape[-1], device=logits.device).exponential_(generator=self.generator)
        return (probabilities / noise).argmax(-1)
