"""Every kernel against a few lines of torch, on shapes that fit its tiles and shapes that do not."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from unfuse.engines.graphed.kernels import decode_attention as decoding
from unfuse.engines.graphed.kernels import few_rows as few
from unfuse.engines.graphed.kernels import matvec as one
from unfuse.engines.graphed.kernels import tail_attention as tails
from unfuse.engines.graphed.kernels import tower
from unfuse.engines.graphed.kernels.decode_attention import DecodeShape, Heads, decode_attention
from unfuse.engines.graphed.kernels.launch import UNIT
from unfuse.engines.graphed.kernels.prompt_attention import Sequences, place_keys, prompt_attention
from unfuse.engines.graphed.kernels.rows import begin_step, gate, largest, rms_norm, rotary_angles
from unfuse.engines.graphed.kernels.shared_attention import MEMBERS, SharedParts, shared_attention
from unfuse.engines.graphed.streamed import fragment_order

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16) if DEVICE.type == "cuda" else (torch.float32,)
EPS = 1e-6
LAYERS, LAYER = 2, 1


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float32).to(DEVICE, dtype)


def whole(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def close(ours, theirs):
    """By norm, against float64: single sums differ in their order and in what they are rounded to."""
    limit = 1e-5 if ours.dtype == torch.float32 else 2e-2
    ours, theirs = ours.double(), theirs.double()
    assert ours.isfinite().all()
    assert float((ours - theirs).norm() / theirs.norm()) < limit


def rms(x, gain):
    x = x.double()
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * gain.double()


def turned(x, cosine, sine):
    low, high = x.double().chunk(2, dim=-1)
    cosine, sine = cosine.double(), sine.double()
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "shape"),
    [
        (32, 64, one.MatvecShape(8, 32, 4, True)),
        (30, 100, one.MatvecShape(8, 32, 4, False)),
        (7, 20, one.MatvecShape(4, 64, 4, True)),
    ],
)
def test_matvec(dtype, n, k, shape, normed, gated):
    weight, x = normal(n * (1 + gated), k, dtype=dtype), normal(k, dtype=dtype)
    gain, bias = normal(k, dtype=dtype), normal(len(weight), dtype=dtype)
    out = normal(n, dtype=dtype)
    before = out.double()
    one.matvec(out, weight, x, shape, gain=gain if normed else None, eps=EPS, bias=bias, add=not gated, gated=gated)
    wanted = weight.double() @ (rms(x, gain) if normed else x.double()) + bias.double()
    close(out, silu(wanted[:n]) * wanted[n:] if gated else before + wanted)


@pytest.mark.parametrize("rows", [2, 16, 20])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "shape"),
    [
        (32, 64, few.FewRowsShape(16, 16, 1, 2, 4)),
        (40, 72, few.FewRowsShape(16, 32, 2, 2, 4)),
        (16, 128, few.FewRowsShape(16, 16, 4, 3, 4)),
    ],
)
def test_few_rows(dtype, n, k, shape, gated, rows):
    weight, x = normal(n * (1 + gated), k, dtype=dtype), normal(few.padded_rows(rows), k, dtype=dtype)
    bias, out = normal(len(weight), dtype=dtype), normal(rows, n, dtype=dtype)
    before = out.double()
    partial = torch.full((few.partial_size(len(weight), rows, shape, gated=gated) + 1,), float("nan"), device=DEVICE)
    arrived = torch.zeros(16, dtype=torch.int32, device=DEVICE)
    few.few_rows(
        out, weight, x, shape, rows=rows, partial=partial, arrived=arrived, bias=bias, add=not gated, gated=gated
    )
    wanted = x[:rows].double() @ weight.double().t() + bias.double()
    close(out, silu(wanted[:, :n]) * wanted[:, n:] if gated else before + wanted)
    assert not arrived.any()


def caches(heads, capacities, dtype):
    anchor = normal(64, dtype=dtype)
    buffers = [normal(LAYERS, 2, heads.kv_heads, room, heads.size, dtype=dtype) for room in capacities]
    unit = UNIT.value * anchor.element_size()
    return anchor, buffers, whole(*((b.data_ptr() - anchor.data_ptr()) // unit for b in buffers), dtype=torch.int64)


HEADS = [Heads(4, 4, 16), Heads(8, 2, 32), Heads(6, 1, 24)]


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


def attended(qkv, sequences, angles, heads, splits, gains=None):
    """Attention of rows, whose keys and values are then in the caches: of few rows in so many parts, or (0) of many."""
    out = torch.full((len(qkv), heads.heads * heads.size), float("nan"), dtype=qkv.dtype, device=DEVICE)
    if not splits:
        place_keys(qkv, sequences, angles, heads, LAYER, gains=gains, eps=EPS)
        prompt_attention(out, qkv, sequences, heads, LAYER, scale=heads.size**-0.5)
        return out
    partial = tails.partial_size(heads, len(qkv), splits, sequences.count)
    arrived = torch.zeros(heads.heads * sequences.count, dtype=torch.int32, device=DEVICE)
    tails.tail_attention(
        out, qkv, sequences, angles, heads, LAYER,
        gains=gains, eps=EPS, scale=heads.size**-0.5, shape=tails.TailShape(splits, 64, 4, 2),
        partial=torch.full((partial,), float("nan"), device=DEVICE), arrived=arrived,
    )  # fmt: skip
    assert not arrived.any()
    return out


@pytest.mark.parametrize(("normed", "splits"), [(False, 0), (True, 0), (False, 1), (True, 4)])
@pytest.mark.parametrize(("start", "count", "rows"), [(0, 20, 20), (11, 70, 80), (100, 3, 16)])
@pytest.mark.parametrize("heads", HEADS[:2], ids=str)
def test_prompt_attention(dtype, heads, start, count, rows, normed, splits):
    room, size = start + count + 5, heads.size
    anchor, (buffer,), where = caches(heads, (room,), dtype)
    wanted = buffer.double()
    qkv, angles = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    given = qkv[:count].double()
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    gains = (normal(size, dtype=dtype), normal(size, dtype=dtype))
    sequence = Sequences(
        anchor, torch.tensor([[int(where)], [room], [start], [count], [0], [0], [1], [0]], device=DEVICE)
    )
    out = attended(qkv, sequence, (cosine, sine), heads, splits, gains if normed else None)
    q, k, v = (
        part.view(count, -1, size) for part in given.split([heads.heads * size, *[heads.kv_heads * size] * 2], dim=-1)
    )
    if normed:
        q, k = rms(q, gains[0]), rms(k, gains[1])
    q, k = (turned(part, cosine[:count, None], sine[:count, None]) for part in (q, k))
    wanted[LAYER, 0, :, start : start + count] = k.transpose(0, 1)
    wanted[LAYER, 1, :, start : start + count] = v.transpose(0, 1)
    keys, values = (part[:, : start + count].repeat_interleave(heads.group, dim=0) for part in wanted[LAYER])
    scores = torch.einsum("nhd,hsd->hns", q, keys) * size**-0.5
    places = torch.arange(start + count, device=DEVICE)
    scores = scores.masked_fill(places > start + torch.arange(count, device=DEVICE)[:, None], float("-inf"))
    close(out[:count], torch.einsum("hns,hsd->nhd", scores.softmax(-1), values).flatten(1))
    close(buffer, wanted)


@pytest.mark.parametrize(("rows", "splits"), [(40, 0), (40, 1), (30, 4), (90, 0)])
@pytest.mark.parametrize("heads", HEADS[:2], ids=str)
def test_prompts_together_are_what_each_is_alone(dtype, heads, rows, splits):
    starts, counts, size = (11, 0, 5), (rows - 22, 3, 17), heads.size
    rooms = tuple(start + count + 4 for start, count in zip(starts, counts, strict=True))
    anchor, buffers, where = caches(heads, rooms, dtype)
    qkv, angles = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    angles = angles.cos().to(dtype), angles.sin().to(dtype)
    firsts = (0, counts[0], counts[0] + counts[1])

    def of(qkv, angles, numbers):
        return attended(qkv, Sequences(anchor, torch.tensor(numbers, device=DEVICE)), angles, heads, splits)

    before = [buffer.clone() for buffer in buffers]
    alone = []
    for at, start, count, room, first in zip(where.tolist(), starts, counts, rooms, firsts, strict=True):
        part = slice(first, first + count)
        alone.append(
            of(qkv[part].clone(), [a[part] for a in angles], [[at], [room], [start], [count], [0], [0], [1], [0]])
        )
    kept = [buffer.clone() for buffer in buffers]
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)
    nothing = (0,) * 3, (1,) * 3, (0,) * 3
    numbers = [*zip(where.tolist(), rooms, starts, counts, firsts, *nothing, strict=True), (0, 1, 0, 0, rows, 0, 1, 0)]
    together = of(qkv.clone(), angles, [list(line) for line in zip(*numbers, strict=True)])
    close(together[: sum(counts)], torch.cat(alone).double())
    for buffer, alone_kept in zip(buffers, kept, strict=True):
        close(buffer, alone_kept.double())


@pytest.mark.parametrize("splits", [0, 1, 4])
@pytest.mark.parametrize("heads", HEADS[:2], ids=str)
def test_what_comes_before_a_prompt_may_lie_elsewhere(dtype, heads, splits):
    """Of two prompts' rows, one's beginning is in another sequence: as if it were in its own."""
    start, counts = 70, (9, 6)
    anchor, (whole_cache, end_cache, _), where = caches(heads, (90, 20, 12), dtype)
    qkv, angles = normal(16, heads.width, dtype=dtype), normal(16, heads.size // 2)
    angles = angles.cos().to(dtype), angles.sin().to(dtype)
    at = where.tolist()
    results = []
    for own, shared in (((at[0], 90, start), (0, 1, 0)), ((at[1], 20, 0), (at[0], 90, start))):
        lines = [(*own, counts[0], 0, *shared), (at[2], 12, 4, counts[1], counts[0], 0, 1, 0)]
        numbers = torch.tensor(lines, device=DEVICE).t().contiguous()
        sequences = Sequences(anchor, numbers, shared[2] > 0)
        out = attended(qkv.clone(), sequences, angles, heads, splits)
        results.append(out[: sum(counts)])
    close(results[1], results[0].double())
    close(end_cache[LAYER, :, :, : counts[0]], whole_cache[LAYER, :, :, start : start + counts[0]].double())


@pytest.mark.parametrize(("normed", "splits"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_positions_that_rows_share_are_read_once_for_all(dtype, heads, normed, splits):
    """Against each row with a copy of them in its own buffer."""
    shared, own, size = (70, 3), (5, 0, 9, 2, 4), heads.size
    of = (0, 1, 0, None, 0)  # what each row shares
    rooms = (80, 8, *(length + 4 for length in own))
    anchor, buffers, where = caches(heads, rooms, dtype)
    rows = len(own)
    qkv, angles = normal(rows, heads.width, dtype=dtype), normal(rows, size // 2)
    angles = angles.cos().to(dtype), angles.sin().to(dtype)
    gains = (normal(size, dtype=dtype), normal(size, dtype=dtype)) if normed else None
    settings = {"gains": gains, "eps": EPS, "scale": size**-0.5}
    # The reference: a buffer each.
    lengths = [own[row] + (0 if of[row] is None else shared[of[row]]) for row in range(rows)]
    copied_anchor, copies, copied = caches(heads, tuple(length + 4 for length in lengths), dtype)
    for row in range(rows):
        ahead = 0 if of[row] is None else shared[of[row]]
        if ahead:
            copies[row][:, :, :, :ahead] = buffers[of[row]][:, :, :, :ahead]
        copies[row][:, :, :, ahead : lengths[row]] = buffers[2 + row][:, :, :, : own[row]]

    def attended(anchor, where, rooms, lengths, parts):
        out = torch.full((rows, heads.heads * size), float("nan"), dtype=dtype, device=DEVICE)
        decode_attention(
            out, qkv, anchor, where, whole(*rooms), whole(*lengths), angles, heads, LAYER,
            shape=DecodeShape(2, 32, 4, 2),
            arrived=torch.zeros(rows * heads.kv_heads, dtype=torch.int32, device=DEVICE),
            partial=torch.full((decoding.partial_size(heads, rows, 2),), float("nan"), device=DEVICE),
            shared=parts, **settings,
        )  # fmt: skip
        return out

    wanted = attended(copied_anchor, copied, [length + 4 for length in lengths], lengths, None)
    members = torch.full((3, MEMBERS), -1, dtype=torch.int32, device=DEVICE)
    members[0, :3], members[1, 0] = whole(0, 2, 4), 1
    scratch = decoding.partial_size(heads, rows, splits)
    parts = SharedParts(
        members=members, caches=torch.cat([where[:2], where[:1]]), capacity=whole(80, 8, 1), length=whole(*shared, 0),
        shares=whole(*(int(each is not None) for each in of)),
        partial=torch.full((scratch,), float("nan"), device=DEVICE), splits=splits,
    )  # fmt: skip
    shared_attention(parts, qkv, anchor, angles, heads, LAYER, **settings)
    close(attended(anchor, where[2:], rooms[2:], own, parts), wanted.double())


def test_rms_norm(dtype):
    x, gain = normal(3, 40, dtype=dtype), normal(40, dtype=dtype)
    out = torch.full_like(x, float("nan"))
    rms_norm(out, x, gain, EPS, rows=2)
    close(out[:2], rms(x[:2], gain))
    assert out[2].isnan().all()


def test_gate(dtype):
    pair = normal(3, 2 * 2100, dtype=dtype)
    out = torch.full((3, 2100), float("nan"), dtype=dtype, device=DEVICE)
    gate(out, pair)
    close(out, silu(pair[:, :2100].double()) * pair[:, 2100:].double())


def test_angles_of_several_axes():
    positions, rates = whole(1, 2, 3, 40, 50, 60, 7, 8, 9).view(3, 3), torch.rand(6).to(DEVICE)
    axes = whole(0, 0, 1, 1, 2, 2)
    cosine, sine = torch.empty(2, 3, 6, device=DEVICE)
    rotary_angles(cosine, sine, positions, rates, axes, 1.5)
    angles = positions[axes.long()].t() * rates
    torch.testing.assert_close(cosine, angles.cos() * 1.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sine, angles.sin() * 1.5, atol=1e-5, rtol=1e-5)


def test_a_step_begins_where_the_last_one_ended(dtype):
    embedding, rates, axes = normal(10, 40, dtype=dtype), torch.rand(6).to(DEVICE), torch.zeros_like(whole(*[0] * 6))
    x, angles = normal(2, 40, dtype=dtype), torch.empty(2, 2, 6, device=DEVICE)
    here, length, position, capacity = whole(0, 0), whole(4, 7), whole(7, 9), whole(9, 8)
    for step in range(2):
        begin_step(
            x, *angles, here, whole(3, 8, dtype=torch.int64), length, position, capacity, embedding, rates, axes, 1.0
        )
        assert torch.equal(x, embedding[[3, 8]])
        # The second row has no more room, and stays at its last place.
        assert here.tolist() == [4 + step, 7]
        assert position.tolist() == [8 + step, 10 + step]
        wanted = (whole(7, 9)[:, None] + step) * rates
        torch.testing.assert_close(angles[0], wanted.cos(), atol=1e-5, rtol=1e-5)


def test_a_step_embeds_in_fragment_order(dtype):
    embedding, rates, axes = normal(10, 192, dtype=dtype), torch.rand(6).to(DEVICE), torch.zeros_like(whole(*[0] * 6))
    x, angles = normal(2, 192, dtype=dtype), torch.empty(2, 2, 6, device=DEVICE)
    begin_step(
        x, *angles, whole(0, 0), whole(3, 8, dtype=torch.int64), whole(4, 7), whole(7, 9), whole(9, 8),
        embedding, rates, axes, 1.0, fragments=True,
    )  # fmt: skip
    assert torch.equal(x, embedding[[3, 8]][:, fragment_order(192).to(DEVICE)])


@pytest.mark.parametrize("vocabulary", [40, 16384, 40000])
@pytest.mark.parametrize("ends", [(), (7,), (39, 2)], ids=str)
def test_largest(vocabulary, ends):
    """Logits of few bits, so that the largest is there several times: the first of them is chosen, as by torch."""
    logits = torch.randint(-9, 9, (6, vocabulary)).float().to(DEVICE)
    logits[2, 7] = logits[3, 39] = 20
    logits[4] = float("-inf")
    logits[5, 3] = float("nan")
    barred = torch.tensor([True, False, True, False, True, False], device=DEVICE)
    end_ids = torch.tensor(ends, dtype=torch.int64, device=DEVICE)
    memory = torch.full((7,), -1, device=DEVICE)
    largest(memory[1:], logits, end_ids, barred)
    wanted = logits.nan_to_num(float("-inf"), neginf=float("-inf"))
    for row in (0, 2, 4):
        wanted[row, end_ids] = float("-inf")
    assert memory.tolist() == [-1, *wanted.argmax(-1).tolist()]


@pytest.mark.parametrize("shape", [*tower.CANDIDATES, tower.IN_FLOAT32], ids=str)
@pytest.mark.parametrize(("images", "positions", "heads", "size"), [(2, 65, 2, 16), (1, 130, 1, 24), (3, 16, 2, 16)])
def test_tower_attention(dtype, images, positions, heads, size, shape):
    qkv = normal(images * positions, 3 * heads * size, dtype=dtype)
    out = qkv.new_empty(len(qkv), heads * size)
    tower.tower_attention(out, qkv, images, heads, size**-0.5, shape)
    q, k, v = qkv.double().view(images, positions, 3, heads, size).permute(2, 0, 3, 1, 4)
    attended = (q @ k.transpose(-1, -2) * size**-0.5).softmax(-1) @ v
    close(out, attended.transpose(1, 2).reshape(len(qkv), -1))


@pytest.mark.parametrize("width", [32, 48])
def test_layer_norm(dtype, width):
    x, gain, shift, bias = normal(5, width, dtype=dtype), *(normal(width, dtype=dtype) for _ in range(3))
    out, moved = torch.empty_like(x), torch.empty_like(x)
    tower.layer_norm(out, moved, x, gain, shift, bias, EPS)
    close(out, torch.nn.functional.layer_norm(x.double(), (width,), gain.double(), shift.double(), EPS))
    close(moved, x.double() + bias.double())


@pytest.mark.parametrize("kind", tower.ACTIVATIONS)
def test_activations(dtype, kind):
    x = 3 * normal(7, 700, dtype=dtype)
    exact = {
        "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    }[kind](x.double())
    tower.activate(x, kind)
    close(x, exact)
