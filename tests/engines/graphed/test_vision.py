"""Stage 3 as graphs: own kernels of a tower against its own forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from unfuse.engines.graphed import tower_layers, vision
from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.tower_layers import TowerLayers
from unfuse.engines.graphed.vision import CapturedVision

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "image_size": 28,
    "patch_size": 7,
}
TOWERS = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, num_attention_heads=2)),
    "clip, heads of 24 and gelu": lambda: CLIPVisionModel(
        CLIPVisionConfig(**{**SIZES, "hidden_size": 48}, num_attention_heads=2, hidden_act="gelu")
    ),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, num_attention_heads=2)),
}


def tower(kind="clip"):
    torch.manual_seed(0)
    model = TOWERS[kind]().to(DEVICE).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    return model


def pixels(frames, seed=0):
    return torch.randn(frames, 3, 28, 28, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def captured(*modules):
    with torch.no_grad():
        return CapturedVision({f"part{i}": m for i, m in enumerate(modules)}, Autotuner(DEVICE), None)


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_graph_is_the_towers_own_forward(kind, monkeypatch):
    model = tower(kind)
    own = [model(pixels(frames, frames), output_hidden_states=True) for frames in (2, 1, 2)]
    used = []
    attention = tower_layers.tower_attention
    monkeypatch.setattr(tower_layers, "tower_attention", lambda *a: (used.append(1), attention(*a)))
    fast = captured(model)
    with fast.active():
        mine = [model(pixels(frames, frames), output_hidden_states=True) for frames in (2, 1, 2)]
    assert used
    assert not fast.notes
    for ours, theirs in zip(mine, own, strict=True):
        assert type(ours) is type(theirs)
        for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_results_are_copies_and_hooks_fire():
    model = tower()
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    with captured(model).active():
        first = model(pixels(1)).last_hidden_state
        before = first.clone()
        model(pixels(1, seed=1))
    handle.remove()
    assert len(seen) == 2
    assert torch.equal(first, before)
    assert "forward" not in vars(model)
    assert all("forward" not in vars(module) for module in model.modules())


@torch.no_grad()
def test_stacked_projections_share_memory_with_the_model():
    model = tower()
    own = model(pixels(1)).last_hidden_state
    assert TowerLayers(model, Autotuner(DEVICE))
    attention = model.encoder.layers[0].self_attn if hasattr(model, "encoder") else None
    attention = attention or model.vision_model.encoder.layers[0].self_attn
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.k_proj, attention.v_proj)}
    assert len(storages) == 1
    torch.testing.assert_close(model(pixels(1)).last_hidden_state, own, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_module_with_another_output_runs_its_own_forward(monkeypatch):
    model = tower()
    own = model(pixels(1)).last_hidden_state
    monkeypatch.setattr(tower_layers, "activate", lambda *_: None)
    fast = captured(model)
    with fast.active():
        mine = model(pixels(1)).last_hidden_state
    torch.testing.assert_close(mine, own)
    (note,) = fast.notes
    assert note.startswith("vision module part0 in the model's own way: its graph's output is ")


@torch.no_grad()
def test_shapes_that_were_not_used_for_long_are_forgotten(monkeypatch):
    monkeypatch.setattr(vision, "_MAX_GRAPHS", 2)
    module = nn.Linear(4, 4).to(DEVICE)
    fast = captured(module)
    with fast.active():
        for rows in (1, 2, 3, 1):
            x = torch.randn(rows, 4, device=DEVICE)
            torch.testing.assert_close(module(x), nn.functional.linear(x, module.weight, module.bias))
    assert len(fast._calls["part0"]) == 2


@torch.no_grad()
def test_other_things_than_tensors_are_not_captured():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x, how):
            return self.inner(x) * how.by

    class How:
        by = 3.0

    module = Odd().to(DEVICE)
    fast = captured(module)
    with fast.active():
        x = torch.ones(1, 2, device=DEVICE)
        torch.testing.assert_close(module(x, How()), module.inner(x) * 3)
    assert len(fast.notes) == 1


@torch.no_grad()
def test_tensors_that_lie_elsewhere_are_not_captured():
    """Their values could be read without a look at the device, and would stay in the graph."""

    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x, sizes):
            return self.inner(x) * len(sizes)

    module = Sized().to(DEVICE)
    fast = captured(module)
    with fast.active():
        x = torch.ones(1, 2, device=DEVICE)
        torch.testing.assert_close(module(x, torch.empty(3, device="meta")), module.inner(x) * 3)
    assert not fast._calls["part0"]
    assert len(fast.notes) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_a_module_that_synchronises_runs_its_own_forward():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return self.inner(x) * (2.0 if float(x.sum()) > 0 else 1.0)

    module = Looking().to(DEVICE)
    fast = captured(module)
    with fast.active():
        for sign in (1, -1):
            x = sign * torch.ones(1, 2, device=DEVICE)
            torch.testing.assert_close(module(x), module.inner(x) * (2.0 if sign > 0 else 1.0))
    assert len(fast.notes) == 1
