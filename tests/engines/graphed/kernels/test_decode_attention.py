"""Attention of one new token against torch."""

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
    rms,
    rotated,
    whole,
)
from unfuse.engines.graphed.kernels.attention_common import partial_size
from unfuse.engines.graphed.kernels.decode_attention import DecodeConfig, decode_attention


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode_attention(dtype, heads, splits, normed):
    lengths, rooms = (5, 130, 0), (16, 140, 8)
    base_pointer, buffers, where = caches(heads, rooms, dtype)
    wanted = [buffer.double() for buffer in buffers]
    rows, size = len(lengths), heads.head_dim
    qkv, cos_sin = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    cosine, sine = cos_sin.cos().to(dtype), cos_sin.sin().to(dtype)
    norm_weights = (normal(size, dtype=dtype), normal(size, dtype=dtype))
    out = torch.full((rows, heads.num_heads * size), float("nan"), dtype=dtype, device=DEVICE)
    semaphores = torch.zeros(rows * heads.num_kv_heads, dtype=torch.int32, device=DEVICE)
    decode_attention(
        out, qkv, base_pointer, where, whole(*rooms), whole(*lengths), (cosine, sine), heads, LAYER,
        config=DecodeConfig(splits, 32, 4, 2),
        partial=torch.full((partial_size(heads, rows, splits),), float("nan"), device=DEVICE),
        semaphores=semaphores, norm_weights=norm_weights if normed else None, eps=EPS, scale=size**-0.5,
    )  # fmt: skip
    for row, length in enumerate(lengths):
        q, k, v = qkv[row].double().split([heads.num_heads * size, *[heads.num_kv_heads * size] * 2])
        q, k, v = (part.view(-1, size) for part in (q, k, v))
        if normed:
            q, k = rms(q, norm_weights[0]), rms(k, norm_weights[1])
        q, k = rotated(q, cosine[row], sine[row]), rotated(k, cosine[row], sine[row])
        wanted[row][LAYER, 0, :, length], wanted[row][LAYER, 1, :, length] = k, v
        keys, values = (part[:, : length + 1].repeat_interleave(heads.group, dim=0) for part in wanted[row][LAYER])
        weights = torch.softmax(torch.einsum("hd,hsd->hs", q, keys) * size**-0.5, dim=-1)
        close(out[row], torch.einsum("hs,hsd->hd", weights, values).flatten())
        close(buffers[row], wanted[row])
    assert not semaphores.any()
