"""Loading by name: input that is refused before anything large is allocated."""

from __future__ import annotations

import json

import pytest
import torch

from unfuse.adapters import eventgpt_loading
from unfuse.adapters.random_weights import RandomShape
from unfuse.errors import CheckpointError, DeviceError
from unfuse.loading import Placement, check_devices, check_model, load


def test_real_size_needs_its_memory(monkeypatch):
    shape = RandomShape(eventgpt_loading.random_config, 10**15)
    monkeypatch.setitem(eventgpt_loading.RANDOM_SHAPES, "eventgpt-7b", shape)
    with pytest.raises(DeviceError, match=r"GiB free on cpu, expected .* GiB for its weights in bfloat16"):
        load("random:eventgpt-7b", device="cpu", dtype="bfloat16")


def test_real_size_is_what_it_says():
    """Counted on the meta device, so that nothing is allocated."""
    from unfuse.models.eventgpt import EventChatModel

    config = eventgpt_loading.random_config()
    with torch.device("meta"):
        model = EventChatModel(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.995 < parameters / eventgpt_loading.RANDOM_SHAPES["eventgpt-7b"].parameters <= 1
    assert model.num_patches == 577


def test_other_families_are_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "vision_config": {}}))
    assert check_model(str(tmp_path)).model_type == "llava"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model_type 'llama' without a vision_config"):
        check_model(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_malformed_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config"):
        check_model(str(tmp_path))


def test_near_misses_are_suggested():
    with pytest.raises(CheckpointError, match="Did you mean demo"):
        check_model("demoo")


def test_cuda_that_is_unavailable(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="0 CUDA devices"):
        load("demo", device="cuda:3")


def test_a_repositorys_code_is_never_run(tmp_path):
    config = {
        "model_type": "strange", "vision_config": {}, "architectures": ["Strange"],
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError) as caught:
        load(str(tmp_path), device="cpu")
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", [torch.device("cpu"), 0, None, b"cpu", "cuda:", "cpu\n"], ids=repr)
def test_what_is_no_name_of_a_device_is_refused(device):
    """From Python it may be anything; nothing is loaded for it."""
    for refuses in (lambda: load("demo", device=device), lambda: Placement(device)):
        with pytest.raises(DeviceError, match="device: found .*, expected auto, cpu, cuda or cuda:N"):
            refuses()
    with pytest.raises(DeviceError, match="devices: found .*, expected auto, a number of GPUs"):
        check_devices(device if device is not None else 2)
