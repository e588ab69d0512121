"""Inputs of the kernels, and reference results by a few lines of torch in float64."""

from __future__ import annotations

import torch

from unfuse.engines.graphed.kernels import extend_attention as tails
from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.launch import UNIT
from unfuse.engines.graphed.kernels.prefill_attention import prefill_attention, write_kv

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


DTYPES = (torch.float32, torch.bfloat16) if DEVICE.type == "cuda" else (torch.float32,)


EPS = 1e-6


LAYERS, LAYER = 2, 1


def normal(*config, dtype=torch.float32):
    return torch.randn(*config, dtype=torch.float32).to(DEVICE, dtype)


def whole(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def close(ours, theirs):
    """Compare by norm, against float64: single sums differ in their order and in their rounding."""
    limit = 1e-5 if ours.dtype == torch.float32 else 2e-2
    ours, theirs = ours.double(), theirs.double()
    assert ours.isfinite().all()
    assert float((ours - theirs).norm() / theirs.norm()) < limit


def rms(x, norm_weight):
    x = x.double()
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * norm_weight.double()


def rotated(x, cosine, sine):
    low, high = x.double().chunk(2, dim=-1)
    cosine, sine = cosine.double(), sine.double()
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def caches(heads, capacities, dtype):
    base_pointer = normal(64, dtype=dtype)
    buffers = [normal(LAYERS, 2, heads.num_kv_heads, room, heads.head_dim, dtype=dtype) for room in capacities]
    unit = UNIT.value * base_pointer.element_size()
    return (
        base_pointer,
        buffers,
        whole(*((b.data_ptr() - base_pointer.data_ptr()) // unit for b in buffers), dtype=torch.int64),
    )


HEADS = [Heads(4, 4, 16), Heads(8, 2, 32), Heads(6, 1, 24)]


def attended(qkv, sequences, cos_sin, heads, splits, norm_weights=None):
    """Attention of rows, written to the caches: extend attention with so many splits, or (0) prefill attention."""
    out = torch.full((len(qkv), heads.num_heads * heads.head_dim), float("nan"), dtype=qkv.dtype, device=DEVICE)
    if not splits:
        write_kv(qkv, sequences, cos_sin, heads, LAYER, norm_weights=norm_weights, eps=EPS)
        prefill_attention(out, qkv, sequences, heads, LAYER, scale=heads.head_dim**-0.5)
        return out
    partial = tails.partial_size(heads, len(qkv), splits, sequences.count)
    semaphores = torch.zeros(heads.num_heads * sequences.count, dtype=torch.int32, device=DEVICE)
    tails.extend_attention(
        out, qkv, sequences, cos_sin, heads, LAYER,
        norm_weights=norm_weights, eps=EPS, scale=heads.head_dim**-0.5, config=tails.ExtendConfig(splits, 64, 4, 2),
        partial=torch.full((partial,), float("nan"), device=DEVICE), semaphores=semaphores,
    )  # fmt: skip
    assert not semaphores.any()
    return out
