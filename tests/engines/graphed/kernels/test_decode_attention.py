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
    turned,
    whole,
)
from unfuse.engines.graphed.kernels import decode_attention as decoding
from unfuse.engines.graphed.kernels.decode_attention import DecodeShape, decode_attention


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode_attention(dtype, heads, splits, normed):
    lengths, rooms = (5, 130, 0), (16, 140, 8)
    anchor, buffers, where = caches(heads, rooms, dtype)
    wanted = [buffer.double() for buffer in buffers]
    rows, size = len(lengths), heads.size
    qkv, angles = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    gains = (normal(size, dtype=dtype), normal(size, dtype=dtype))
    out = torch.full((rows, heads.heads * size), float("nan"), dtype=dtype, device=DEVICE)
    arrived = torch.zeros(rows * heads.kv_heads, dtype=torch.int32, device=DEVICE)
    decode_attention(
        out, qkv, anchor, where, whole(*rooms), whole(*lengths), (cosine, sine), heads, LAYER,
        shape=DecodeShape(splits, 32, 4, 2),
        partial=torch.full((decoding.partial_size(heads, rows, splits),), float("nan"), device=DEVICE),
        arrived=arrived, gains=gains if normed else None, eps=EPS, scale=size**-0.5,
    )  # fmt: skip
    for row, length in enumerate(lengths):
        q, k, v = qkv[row].double().split([heads.heads * size, *[heads.kv_heads * size] * 2])
        q, k, v = (part.view(-1, size) for part in (q, k, v))
        if normed:
            q, k = rms(q, gains[0]), rms(k, gains[1])
        q, k = turned(q, cosine[row], sine[row]), turned(k, cosine[row], sine[row])
        wanted[row][LAYER, 0, :, length], wanted[row][LAYER, 1, :, length] = k, v
        keys, values = (part[:, : length + 1].repeat_interleave(heads.group, dim=0) for part in wanted[row][LAYER])
        weights = torch.softmax(torch.einsum("hd,hsd->hs", q, keys) * size**-0.5, dim=-1)
        close(out[row], torch.einsum("hs,hsd->hd", weights, values).flatten())
        close(buffers[row], wanted[row])
    assert not arrived.any()
