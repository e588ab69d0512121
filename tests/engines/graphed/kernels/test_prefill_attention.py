"""Attention of prompts against torch, alone, together and behind a prefix."""

from __future__ import annotations

import pytest
import torch

from tests.engines.graphed.kernels.reference import (
    DEVICE,
    HEADS,
    LAYER,
    attended,
    caches,
    close,
    normal,
    rms,
    rotated,
)
from unfuse.engines.graphed.kernels.prefill_attention import PackedSequences


@pytest.mark.parametrize(("normed", "splits"), [(False, 0), (True, 0), (False, 1), (True, 4)])
@pytest.mark.parametrize(("start", "count", "rows"), [(0, 20, 20), (11, 70, 80), (100, 3, 16)])
@pytest.mark.parametrize("heads", HEADS[:2], ids=str)
def test_prefill_attention(dtype, heads, start, count, rows, normed, splits):
    room, size = start + count + 5, heads.head_dim
    base_pointer, (buffer,), where = caches(heads, (room,), dtype)
    wanted = buffer.double()
    qkv, cos_sin = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    given = qkv[:count].double()
    cosine, sine = cos_sin.cos().to(dtype), cos_sin.sin().to(dtype)
    norm_weights = (normal(size, dtype=dtype), normal(size, dtype=dtype))
    sequence = PackedSequences(
        base_pointer, torch.tensor([[int(where)], [room], [start], [count], [0], [0], [1], [0]], device=DEVICE)
    )
    out = attended(qkv, sequence, (cosine, sine), heads, splits, norm_weights if normed else None)
    q, k, v = (
        part.view(count, -1, size)
        for part in given.split([heads.num_heads * size, *[heads.num_kv_heads * size] * 2], dim=-1)
    )
    if normed:
        q, k = rms(q, norm_weights[0]), rms(k, norm_weights[1])
    q, k = (rotated(part, cosine[:count, None], sine[:count, None]) for part in (q, k))
    wanted[LAYER, 0, :, start : start + count] = k.transpose(0, 1)
    wanted[LAYER, 1, :, start : start + count] = v.transpose(0, 1)
    keys, values = (part[:, : start + count].repeat_interleave(heads.group, dim=0) for part in wanted[LAYER])
    scores = torch.einsum("nhd,hsd->hns", q, keys) * size**-0.5
    positions = torch.arange(start + count, device=DEVICE)
    scores = scores.masked_fill(positions > start + torch.arange(count, device=DEVICE)[:, None], float("-inf"))
    close(out[:count], torch.einsum("hns,hsd->nhd", scores.softmax(-1), values).flatten(1))
    close(buffer, wanted)


@pytest.mark.parametrize(("rows", "splits"), [(40, 0), (40, 1), (30, 4), (90, 0)])
@pytest.mark.parametrize("heads", HEADS[:2], ids=str)
def test_prompts_together_are_what_each_is_alone(dtype, heads, rows, splits):
    starts, counts, size = (11, 0, 5), (rows - 22, 3, 17), heads.head_dim
    rooms = tuple(start + count + 4 for start, count in zip(starts, counts, strict=True))
    base_pointer, buffers, where = caches(heads, rooms, dtype)
    qkv, cos_sin = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    cos_sin = cos_sin.cos().to(dtype), cos_sin.sin().to(dtype)
    firsts = (0, counts[0], counts[0] + counts[1])

    def of(qkv, cos_sin, numbers):
        return attended(
            qkv, PackedSequences(base_pointer, torch.tensor(numbers, device=DEVICE)), cos_sin, heads, splits
        )

    before = [buffer.clone() for buffer in buffers]
    alone = []
    for at, start, count, room, first in zip(where.tolist(), starts, counts, rooms, firsts, strict=True):
        part = slice(first, first + count)
        alone.append(
            of(qkv[part].clone(), [a[part] for a in cos_sin], [[at], [room], [start], [count], [0], [0], [1], [0]])
        )
    results = [buffer.clone() for buffer in buffers]
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)
    nothing = (0,) * 3, (1,) * 3, (0,) * 3
    numbers = [*zip(where.tolist(), rooms, starts, counts, firsts, *nothing, strict=True), (0, 1, 0, 0, rows, 0, 1, 0)]
    together = of(qkv.clone(), cos_sin, [list(line) for line in zip(*numbers, strict=True)])
    close(together[: sum(counts)], torch.cat(alone).double())
    for buffer, result in zip(buffers, results, strict=True):
        close(buffer, result.double())


@pytest.mark.parametrize("splits", [0, 1, 4])
@pytest.mark.parametrize("heads", HEADS[:2], ids=str)
def test_a_prefix_may_lie_in_another_kv_cache(dtype, heads, splits):
    """Of two prompts' rows, one's beginning is in another sequence: as if it were in its own."""
    start, counts = 70, (9, 6)
    base_pointer, (whole_cache, end_cache, _), where = caches(heads, (90, 20, 12), dtype)
    qkv, cos_sin = normal(16, heads.width, dtype=dtype), normal(16, heads.head_dim // 2)
    cos_sin = cos_sin.cos().to(dtype), cos_sin.sin().to(dtype)
    at = where.tolist()
    results = []
    for own, shared in (((at[0], 90, start), (0, 1, 0)), ((at[1], 20, 0), (at[0], 90, start))):
        lines = [(*own, counts[0], 0, *shared), (at[2], 12, 4, counts[1], counts[0], 0, 1, 0)]
        numbers = torch.tensor(lines, device=DEVICE).t().contiguous()
        sequences = PackedSequences(base_pointer, numbers, shared[2] > 0)
        out = attended(qkv.clone(), sequences, cos_sin, heads, splits)
        results.append(out[: sum(counts)])
    close(results[1], results[0].double())
    close(end_cache[LAYER, :, :, : counts[0]], whole_cache[LAYER, :, :, start : start + counts[0]].double())
