"""Kernels around a decode pass over drafted tokens: take the host's draft, embed its tokens, accept the model's choice.

The graph of a pass is launched before its draft exists. The first kernel waits for the draft in pinned host memory, so
the device never waits for a launch, and the host drafts while the graph is being started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import triton
import triton.language as tl

from unfuse.engines.graphed.kernels.launch import launch

if TYPE_CHECKING:
    import torch

LENGTH: Final = 0
"""Entry of the state: cached positions, and so the cache position of the next token."""
POSITION: Final = 1
"""Rotary position of the next token."""
REMAINING: Final = 2
"""Tokens that the answer may still get."""
PASS: Final = 3
"""Number of the pass, counted from 1."""
FINISHED: Final = 4
WRITTEN: Final = 5
"""Tokens of the answer that passes have chosen."""
STATE_SIZE: Final = 8
RESULTS: Final = 4
"""Passes with results that the host may not have read yet."""
_LOOKS: Final = 1 << 22
"""Reads of host memory, of some microseconds each, after which a pass goes on without a draft."""


@triton.jit
def _receive_draft(draft, tokens, count, write_position, state, capacity, looks, TOKENS: tl.constexpr):
    at = tl.arange(0, TOKENS)
    finished = tl.load(state + 4)
    number = tl.load(state + 3).to(tl.int64)
    word = tl.load(draft + at, volatile=True)
    # The upper half of each word is the number of its pass: no order of the host's writes is needed.
    missing = tl.sum(((word >> 32) != number).to(tl.int32), axis=0)
    left = looks
    while (missing > 0) & (left > 0) & (finished == 0):
        word = tl.load(draft + at, volatile=True)
        missing = tl.sum(((word >> 32) != number).to(tl.int32), axis=0)
        left -= 1
    token = word & 0xFFFFFFFF
    drafted = tl.sum(tl.where(at == 0, token, 0), axis=0).to(tl.int32)
    drafted = tl.where(missing > 0, 0, drafted)
    length = tl.load(state)
    room = tl.minimum(tl.load(capacity) - length, tl.load(state + 2))
    drafted = tl.maximum(tl.minimum(drafted, tl.minimum(room, TOKENS) - 1), 0)
    computed = tl.where(finished != 0, 0, drafted + 1)
    tl.store(count, computed)
    tl.store(write_position, length)
    tl.store(tokens + at, token, mask=(at > 0) & (at < computed))


@triton.jit
def _begin_pass(
    x, cosine, sine, tokens, count, state, embedding, inv_freq, axes, scaling,
    H: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if row < tl.load(count):
        at = tl.arange(0, HALF_BLOCK)
        inside = at < HALF
        angle = (tl.load(state + 1) + row).to(tl.float32) * tl.load(inv_freq + at, mask=inside, other=0.0)
        dtype = cosine.dtype.element_ty
        tl.store(cosine + row * HALF + at, (tl.cos(angle) * scaling).to(dtype), mask=inside)
        tl.store(sine + row * HALF + at, (tl.sin(angle) * scaling).to(dtype), mask=inside)
        column = tl.arange(0, BLOCK)
        value = tl.load(embedding + tl.load(tokens + row).to(tl.int64) * H + column, mask=column < H, other=0.0)
        # The inverse of ``megakernel.fragment_order``.
        chunk = column % 64 // 8
        word = (chunk // 2 % 2 * 4 + column % 8 // 2) * 4 + chunk // 4 * 2 + chunk % 2
        tl.store(x + row * H + column // 64 * 64 + word * 2 + column % 2, value, mask=column < H)


@triton.jit
def _accept_tokens(
    tokens, chosen, count, state, end_ids, forced, num_forced, results,
    TOKENS: tl.constexpr, ENDS: tl.constexpr, RESULTS: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, TOKENS)
    computed = tl.load(count)
    if computed > 0:
        written, remaining, number = tl.load(state + 5), tl.load(state + 2), tl.load(state + 3)
        picked = tl.load(chosen + at)
        given = written + at
        picked = tl.load(forced + given, mask=given < tl.load(num_forced), other=picked)
        # A token of logits that are not finite is -1, and ends the answer.
        ends = picked < 0
        for end in tl.static_range(ENDS):
            ends = ends | (picked == tl.load(end_ids + end))
        following = tl.load(tokens + at + 1, mask=at + 1 < computed, other=-1)
        accepted = (picked == following) & (at + 1 < computed) & (ends == 0)
        fresh = tl.minimum(tl.min(tl.where(accepted, TOKENS, at), axis=0) + 1, remaining)
        last = tl.sum(tl.where(at == fresh - 1, picked, 0), axis=0)
        ended = tl.sum(tl.where(at == fresh - 1, ends.to(tl.int32), 0), axis=0)
        finished = ((remaining == fresh) | (ended > 0)).to(tl.int32)
        out = results + (number % RESULTS) * (TOKENS + 1)
        tag = number.to(tl.int64) << 32
        tl.store(out, fresh.to(tl.int64) | (computed.to(tl.int64) << 8) | (finished.to(tl.int64) << 16) | tag)
        tl.store(out + 1 + at, tl.where(at < fresh, picked & 0xFFFFFFFF, 0) | tag)
        length, position = tl.load(state), tl.load(state + 1)
        # Every thread must have read the state before it changes.
        tl.debug_barrier()
        tl.store(state, length + fresh)
        tl.store(state + 1, position + fresh)
        tl.store(state + 2, remaining - fresh)
        tl.store(state + 3, number + 1)
        tl.store(state + 4, finished)
        tl.store(state + 5, written + fresh)
        tl.store(tokens, last)


def receive_draft(
    draft: torch.Tensor,
    tokens: torch.Tensor,
    count: torch.Tensor,
    write_position: torch.Tensor,
    state: torch.Tensor,
    capacity: torch.Tensor,
    *,
    looks: int = _LOOKS,
) -> None:
    """Wait for the host's draft of this pass, and take as many of its tokens as the cache and the answer have room for.

    Args:
        draft: int64 ``[T]`` in pinned memory. The upper 32 bits of each word are the number of the pass; the lower ones
            of word 0 are the number of drafted tokens, those of word t the t-th of them.
        tokens: int64 ``[T]``; from entry 1 on, out.
        count: int32, out: tokens of the pass; 0 if the answer has ended.
        write_position: int32 ``[1]``, out: cache position of the first token.
        state: int32 ``[STATE_SIZE]``.
        capacity: int32 ``[1]``, positions that the cache has room for.
        looks: reads of host memory until a pass goes on without a draft.
    """
    launch(
        _receive_draft,
        (1,),
        draft,
        tokens,
        count,
        write_position,
        state,
        capacity,
        looks,
        TOKENS=len(tokens),
        num_warps=1,
    )


def begin_pass(
    x: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    tokens: torch.Tensor,
    count: torch.Tensor,
    state: torch.Tensor,
    embedding: torch.Tensor,
    inv_freq: torch.Tensor,
    axes: torch.Tensor,
    scaling: float,
) -> None:
    """Embed the tokens of a pass and compute their rotary cosines and sines, with the bits of ``begin_step``.

    Args:
        x: ``[T, H]``, out, in the order of ``megakernel.fragment_order``.
        cosine: ``[T, D / 2]``, out.
        sine: ``[T, D / 2]``, out.
        tokens: int64 ``[T]``.
        count: int32, tokens of the pass.
        state: int32 ``[STATE_SIZE]``.
        embedding: ``[V, H]``.
        inv_freq: as ``rotary_cos_sin``.
        axes: as ``rotary_cos_sin``; a new token has the same position on every axis.
        scaling: as ``rotary_cos_sin``.
    """
    h, half = embedding.shape[1], cosine.shape[1]
    launch(
        _begin_pass, (len(tokens),),
        x, cosine, sine, tokens, count, state, embedding, inv_freq, axes, scaling,
        H=h, HALF=half, BLOCK=triton.next_power_of_2(h), HALF_BLOCK=triton.next_power_of_2(half), num_warps=8,
    )  # fmt: skip


def accept_tokens(
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    count: torch.Tensor,
    state: torch.Tensor,
    end_ids: torch.Tensor,
    forced: torch.Tensor,
    num_forced: torch.Tensor,
    results: torch.Tensor,
) -> None:
    """Accept the drafted tokens up to the first that the model did not choose, and the model's own token after them.

    Args:
        tokens: int64 ``[T]``, tokens of the pass; entry 0 becomes the last token of the answer.
        chosen: int64 ``[T]``, the model's choice after each of them.
        count: int32, tokens of the pass.
        state: int32 ``[STATE_SIZE]``, moved on by the accepted tokens.
        end_ids: int64 ``[E]``, tokens that end an answer.
        forced: int64 ``[F]``, tokens of the answer that replace the model's choice.
        num_forced: int32, entries of ``forced`` in use.
        results: int64 ``[RESULTS, T + 1]`` in pinned memory, out: row ``pass % RESULTS``. The upper 32 bits of each
            word are the number of the pass. The lower ones of word 0 are the number of new tokens, plus 256 times the
            tokens of the pass, plus 65536 if the answer has ended; those of the next words are the new tokens. An
            invalid token ends the answer, and its word has 32 ones.
    """
    launch(
        _accept_tokens, (1,), tokens, chosen, count, state, end_ids, forced, num_forced, results,
        TOKENS=len(tokens), ENDS=len(end_ids), RESULTS=RESULTS, num_warps=1,
    )  # fmt: skip
