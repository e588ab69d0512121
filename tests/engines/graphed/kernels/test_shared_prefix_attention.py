"""Attention over positions that rows share, against torch."""

from __future__ import annotations

import pytest
import torch

from tests.engines.graphed.kernels.reference import (
    DEVICE,
    EPS,
    HEADS,
    LAYER,
    caches,
    close,
    normal,
    whole,
)
from unfuse.engines.graphed.kernels.attention_common import partial_size
from unfuse.engines.graphed.kernels.decode_attention import DecodeConfig, decode_attention
from unfuse.engines.graphed.kernels.shared_prefix_attention import MEMBERS, SharedPrefixes, shared_prefix_attention


@pytest.mark.parametrize(("normed", "splits"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_shared_prefixes_are_read_once(dtype, heads, normed, splits):
    """Against each row with a copy of them in its own buffer."""
    shared, own, size = (70, 3), (5, 0, 9, 2, 4), heads.head_dim
    of = (0, 1, 0, None, 0)  # what each row in_group
    rooms = (80, 8, *(length + 4 for length in own))
    base_pointer, buffers, where = caches(heads, rooms, dtype)
    rows = len(own)
    qkv, cos_sin = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    cos_sin = cos_sin.cos().to(dtype), cos_sin.sin().to(dtype)
    norm_weights = (normal(size, dtype=dtype), normal(size, dtype=dtype)) if normed else None
    settings = {"norm_weights": norm_weights, "eps": EPS, "scale": size**-0.5}
    # The reference: a buffer each.
    lengths = [own[row] + (0 if of[row] is None else shared[of[row]]) for row in range(rows)]
    copied_anchor, copies, copied = caches(heads, tuple(length + 4 for length in lengths), dtype)
    for row in range(rows):
        ahead = 0 if of[row] is None else shared[of[row]]
        if ahead:
            copies[row][:, :, :, :ahead] = buffers[of[row]][:, :, :, :ahead]
        copies[row][:, :, :, ahead : lengths[row]] = buffers[2 + row][:, :, :, : own[row]]

    def attended(base_pointer, where, rooms, lengths, parts):
        out = torch.full((rows, heads.num_heads * size), float("nan"), dtype=dtype, device=DEVICE)
        decode_attention(
            out, qkv, base_pointer, where, whole(*rooms), whole(*lengths), cos_sin, heads, LAYER,
            config=DecodeConfig(2, 32, 4, 2),
            semaphores=torch.zeros(rows * heads.num_kv_heads, dtype=torch.int32, device=DEVICE),
            partial=torch.full((partial_size(heads, rows, 2),), float("nan"), device=DEVICE),
            shared=parts, **settings,
        )  # fmt: skip
        return out

    wanted = attended(copied_anchor, copied, [length + 4 for length in lengths], lengths, None)
    members = torch.full((3, MEMBERS), -1, dtype=torch.int32, device=DEVICE)
    members[0, :3], members[1, 0] = whole(0, 2, 4), 1
    scratch = partial_size(heads, rows, splits)
    parts = SharedPrefixes(
        members=members, caches=torch.cat([where[:2], where[:1]]), capacity=whole(80, 8, 1), length=whole(*shared, 0),
        in_group=whole(*(int(each is not None) for each in of)),
        partial=torch.full((scratch,), float("nan"), device=DEVICE), splits=splits,
    )  # fmt: skip
    shared_prefix_attention(parts, qkv, base_pointer, cos_sin, heads, LAYER, **settings)
    close(attended(base_pointer, where[2:], rooms[2:], own, parts), wanted.double())
