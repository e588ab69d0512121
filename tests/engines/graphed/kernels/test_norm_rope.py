"""Norms, gates, cos_sin, argmax and the begin of a step against torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from tests.engines.graphed.kernels.reference import DEVICE, EPS, close, normal, rms, whole
from unfuse.engines.graphed.kernels.argmax import argmax
from unfuse.engines.graphed.kernels.norm_rope import begin_step, gate, rms_norm, rotary_cos_sin
from unfuse.engines.graphed.megakernel import fragment_order


def test_rms_norm(dtype):
    x, norm_weight = normal(3, 40, dtype=dtype), normal(40, dtype=dtype)
    out = torch.full_like(x, float("nan"))
    rms_norm(out, x, norm_weight, EPS, rows=2)
    close(out[:2], rms(x[:2], norm_weight))
    assert out[2].isnan().all()


def test_gate(dtype):
    pair = normal(3, 2 * 2100, dtype=dtype)
    out = torch.full((3, 2100), float("nan"), dtype=dtype, device=DEVICE)
    gate(out, pair)
    close(out, silu(pair[:, :2100].double()) * pair[:, 2100:].double())


def test_rotary_embedding_with_several_axes():
    positions, inv_freq = whole(1, 2, 3, 40, 50, 60, 7, 8, 9).view(3, 3), torch.rand(6).to(DEVICE)
    axes = whole(0, 0, 1, 1, 2, 2)
    cosine, sine = torch.empty(2, 3, 6, device=DEVICE)
    rotary_cos_sin(cosine, sine, positions, inv_freq, axes, 1.5)
    cos_sin = positions[axes.long()].t() * inv_freq
    torch.testing.assert_close(cosine, cos_sin.cos() * 1.5, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sine, cos_sin.sin() * 1.5, atol=1e-5, rtol=1e-5)


def test_a_step_continues_after_the_last_step(dtype):
    embedding, inv_freq, axes = normal(10, 40, dtype=dtype), torch.rand(6).to(DEVICE), torch.zeros_like(whole(*[0] * 6))
    x, cos_sin = normal(2, 40, dtype=dtype), torch.empty(2, 2, 6, device=DEVICE)
    write_position, length, position, capacity = whole(0, 0), whole(4, 7), whole(7, 9), whole(9, 8)
    for step in range(2):
        begin_step(
            x,
            *cos_sin,
            write_position,
            whole(3, 8, dtype=torch.int64),
            length,
            position,
            capacity,
            embedding,
            inv_freq,
            axes,
            1.0,
        )
        assert torch.equal(x, embedding[[3, 8]])
        # The second row has no more room, and stays at its last position.
        assert write_position.tolist() == [4 + step, 7]
        assert position.tolist() == [8 + step, 10 + step]
        wanted = (whole(7, 9)[:, None] + step) * inv_freq
        torch.testing.assert_close(cos_sin[0], wanted.cos(), atol=1e-5, rtol=1e-5)


def test_a_step_embeds_in_fragment_order(dtype):
    embedding, inv_freq, axes = (
        normal(10, 192, dtype=dtype),
        torch.rand(6).to(DEVICE),
        torch.zeros_like(whole(*[0] * 6)),
    )
    x, cos_sin = normal(2, 192, dtype=dtype), torch.empty(2, 2, 6, device=DEVICE)
    begin_step(
        x, *cos_sin, whole(0, 0), whole(3, 8, dtype=torch.int64), whole(4, 7), whole(7, 9), whole(9, 8),
        embedding, inv_freq, axes, 1.0, fragments=True,
    )  # fmt: skip
    assert torch.equal(x, embedding[[3, 8]][:, fragment_order(192).to(DEVICE)])


@pytest.mark.parametrize("vocabulary", [40, 16384, 40000])
@pytest.mark.parametrize("ends", [(), (7,), (39, 2)], ids=str)
def test_argmax(vocabulary, ends):
    """Logits of few bits, so that the largest is there several times: the first of them is chosen, as by torch."""
    logits = torch.randint(-9, 9, (4, vocabulary)).float().to(DEVICE)
    logits[2, 7] = logits[3, 39] = 20
    eos_masked = torch.tensor([True, False, True, False], device=DEVICE)
    end_ids = torch.tensor(ends, dtype=torch.int64, device=DEVICE)
    memory = torch.full((5,), 99, device=DEVICE)
    argmax(memory[1:], logits, end_ids, eos_masked)
    wanted = logits.clone()
    for row in (0, 2):
        wanted[row, end_ids] = float("-inf")
    assert memory.tolist() == [99, *wanted.argmax(-1).tolist()]


@pytest.mark.parametrize("vocabulary", [40, 16384, 16385])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_argmax_of_logits_that_are_not_finite_is_invalid(vocabulary, value):
    """A single value makes its row invalid, wherever it is: also on an end token, which the mask would hide."""
    places = (0, 7, vocabulary - 1)
    logits = torch.randn(len(places) + 1, vocabulary, device=DEVICE)
    for row, place in enumerate(places):
        logits[row, place] = float(value)
    eos_masked = torch.ones(len(logits), dtype=torch.bool, device=DEVICE)
    token = torch.zeros(len(logits), dtype=torch.int64, device=DEVICE)
    argmax(token, logits, torch.tensor([7], device=DEVICE), eos_masked)
    assert token[:-1].tolist() == [-1] * len(places)
    assert token[-1] >= 0


def test_an_invalid_token_is_embedded_as_0():
    embedding, x = normal(5, 16), torch.empty(2, 16, device=DEVICE)
    inv_freq = normal(8)
    begin_step(
        x, *torch.empty(2, 2, 8, device=DEVICE), whole(0, 0), whole(-1, 3, dtype=torch.int64), whole(0, 1),
        whole(0, 1), whole(9, 9), embedding, inv_freq, torch.zeros_like(whole(*[0] * 8)), 1.0,
    )  # fmt: skip
    assert torch.equal(x, embedding[[0, 3]])
