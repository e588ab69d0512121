"""Greedy decoding: the argmax of each row of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from unfuse.engines.graphed.kernels.launch import launch

if TYPE_CHECKING:
    import torch


@triton.jit(do_not_specialize_on_alignment=["token", "eos_masked"])
def _argmax(token, logits, end_ids, eos_masked, ENDS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    no_end = tl.load(eos_masked + row)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.arange(0, BLOCK)
    finite = where >= 0
    for begin in range(0, V, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        value = tl.load(logits + row.to(tl.int64) * V + at, mask=at < V, other=float("-inf"))
        # Before the mask, whose infinity is intended. A comparison with NaN is false.
        finite = finite & ((tl.abs(value) < float("inf")) | (at >= V))
        for end in tl.static_range(ENDS):
            value = tl.where(no_end & (at == tl.load(end_ids + end)), float("-inf"), value)
        where = tl.where(value > best, at, where)
        best = tl.maximum(value, best)
    # Of equal logits the first, as in torch: logits of few bits are often equal.
    chosen = tl.min(tl.where(best == tl.max(best, axis=0), where, V), axis=0)
    chosen = tl.where(tl.min(finite.to(tl.int32), axis=0) > 0, chosen, -1)
    tl.store(token + row, chosen.to(tl.int64))


def argmax(token: torch.Tensor, logits: torch.Tensor, end_ids: torch.Tensor, eos_masked: torch.Tensor) -> None:
    """Write the token of each row's largest logit; the first of equal ones.

    The token of a row with NaN or infinity is ``INVALID_TOKEN`` (-1).

    Args:
        token: int64 ``[R]``, out.
        logits: float32 ``[R, V]``.
        end_ids: int64 ``[E]``, tokens that end an answer.
        eos_masked: bool ``[R]``, True for rows that must not end their answer yet.
    """
    rows, v = logits.shape
    block = min(16384, triton.next_power_of_2(v))
    warps = min(32, max(1, block // 512))
    launch(_argmax, (rows,), token, logits, end_ids, eos_masked, ENDS=len(end_ids), V=v, BLOCK=block, num_warps=warps)
