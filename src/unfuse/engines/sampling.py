"""Choice of the next token from logits."""

from __future__ import annotations

from typing import Final

import torch

from unfuse.errors import NonFiniteError
from unfuse.finite import INVALID_TOKEN, is_finite, non_finite_counts
from unfuse.stages import Sampling

_STEP: Final = -0x61C8864680B583EB
"""Increment of SplitMix64, as a signed number, like the two factors."""
_FACTORS: Final = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_RANDOM_BITS: Final = 23


class TokenChooser:
    """Choose tokens of one answer or of several answers with the same settings.

    The noise of a draw is a function of the seed and of the position of the token. So a token does not depend on
    earlier draws or on other answers in the batch, and an answer can be repeated from any position.
    """

    def __init__(self, sampling: Sampling, end_ids: torch.Tensor, device: torch.device):
        self._greedy = sampling.temperature == 0
        self._eos_masked = end_ids if sampling.ignore_eos else None
        # Tensors on the device, so that one captured graph serves every setting.
        self._temperature = torch.empty((), device=device)
        self._top_p = torch.empty((), device=device)
        self._seed_key = torch.empty((), dtype=torch.int64, device=device)
        self._index_steps: torch.Tensor | None = None
        self.set(sampling)

    def set(self, sampling: Sampling) -> None:
        """Use other numbers of the same kind: both greedy or both sampled, with the same ``ignore_eos``."""
        # A temperature or top_p that float32 rounds to 0 or infinity would make the probabilities NaN, or all 0.
        limits = torch.finfo(torch.float32)
        self._temperature.fill_(min(max(sampling.temperature, limits.tiny), limits.max))
        # A sum of all probabilities may be a little under or over 1, so a top_p of 1 must not cut the tail.
        self._top_p.fill_(max(sampling.top_p, limits.tiny) if sampling.top_p < 1 else 2)
        self._seed_key.fill_(hashed_seed(sampling.seed))

    def __call__(self, logits: torch.Tensor, positions: torch.Tensor | int) -> torch.Tensor:
        """Return token ids, int64 ``[...]``, on the device of the logits and without waiting for them.

        The token of a row with NaN or infinity is ``INVALID_TOKEN``, whichever token these values would choose.

        Temperature is applied first, then the nucleus: the smallest set of tokens with a probability of at least
        ``top_p`` in sum (Holtzman et al., arXiv 1904.09751). A token is drawn as the argmax of the probabilities over
        exponential noise, as ``torch.multinomial`` draws.

        Args:
            logits: ``[..., V]``.
            positions: int ``[...]``: rotary position that each chosen token gets.
        """
        # Before the mask, whose infinity is intended.
        finite = is_finite(logits)
        if self._eos_masked is not None:
            logits = logits.index_fill(-1, self._eos_masked, float("-inf"))
        return torch.where(finite, self._chosen(logits, positions), INVALID_TOKEN)

    def _chosen(self, logits: torch.Tensor, positions: torch.Tensor | int) -> torch.Tensor:
        """Return the token ids of finite logits."""
        if self._greedy:
            return logits.argmax(-1)
        logits = logits.float()
        # The largest is 0 before the division, so no quotient is NaN at any temperature.
        scaled = (logits - logits.amax(-1, keepdim=True)) / self._temperature
        probabilities = torch.softmax(scaled, dim=-1)
        ordered, order = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= self._top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
        if isinstance(positions, int):
            positions = torch.full(logits.shape[:-1], positions, device=logits.device)
        if self._index_steps is None or len(self._index_steps) != logits.shape[-1]:
            self._index_steps = index_steps(logits.shape[-1], logits.device)
        return (probabilities / exponential_noise(self._seed_key, positions, self._index_steps)).argmax(-1)


def require_valid(token: int, stage: str, logits: torch.Tensor | None = None) -> int:
    """Return a token that the host has read.

    Args:
        token: from ``TokenChooser``, or a kernel that chooses tokens.
        stage: stage that computed its logits.
        logits: of the token, for the message; None if they are overwritten by now.

    Raises:
        NonFiniteError: the token is ``INVALID_TOKEN``.
    """
    if token != INVALID_TOKEN:
        return token
    found = "NaN or infinity" if logits is None else non_finite_counts([logits])
    raise NonFiniteError(stage, "logits", found=found)


def hashed_seed(seed: int) -> int:
    """Return the key of a seed, a signed 64-bit number. Any integer is a seed; equal ones modulo 2^64 are the same."""
    mask = 2**64 - 1
    key = (seed + _STEP) & mask
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        key = (key ^ key >> shift) * factor & mask
    key ^= key >> 31
    return key - 2**64 if key >= 2**63 else key


def index_steps(count: int, device: torch.device) -> torch.Tensor:
    """Return the increments, int64 ``[count]``, that turn a position's key into the keys of its numbers."""
    return torch.arange(1, count + 1, device=device) * _STEP


def exponential_noise(key: torch.Tensor, positions: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return exponentially distributed numbers, float32 ``[..., N]``, that depend on seed and position only.

    They come from the counter-based form of SplitMix64 (Steele et al., OOPSLA 2014): one hash of the seed, one of the
    position and one of the index.

    Args:
        key: int64 scalar, from ``hashed_seed``.
        positions: int ``[...]`` on the same device.
        steps: int64 ``[N]``, from ``index_steps``.
    """
    keys = _mixed(key + (positions.to(torch.int64) + 1) * _STEP)
    bits = _mixed(keys[..., None] + steps)
    # The half keeps the uniform number above 0, and 23 bits with it are exact in float32, so it is below 1.
    uniform = (_shifted(bits, 64 - _RANDOM_BITS).float() + 0.5) * 2.0**-_RANDOM_BITS
    return -uniform.log()


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Return the finalizer of SplitMix64; int64 products wrap around."""
    values = (values ^ _shifted(values, 30)) * _FACTORS[0]
    values = (values ^ _shifted(values, 27)) * _FACTORS[1]
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Return a logical shift to the right."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
