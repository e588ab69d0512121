"""Every key accounted for; the tower found; adapters, quantisation and device maps round-trip."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CLIPVisionConfig

from tests import forked
from unfuse.errors import CheckpointError
from unfuse.loading import load
from unfuse.models.eventgpt import EventChatConfig, EventChatModel
from unfuse.models.eventgpt.tower import resolve_tower
from unfuse.samples.demo import demo_checkpoint

IDS = torch.tensor([[1, 300, -200, 301]])


@pytest.fixture
def folder(tmp_path):
    source = demo_checkpoint()
    shutil.copytree(source.parent / "clip-vit-demo-patch14-112", tmp_path / "clip-vit-demo-patch14-112")
    return shutil.copytree(source, tmp_path / "EventGPT-x")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensor(folder):
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        EventChatModel.from_pretrained(folder)


def test_missing_tower_tensor(folder):
    rewrite(folder, lambda t: t.pop("model.visual_tower.visual_tower.vision_model.embeddings.class_embedding"))
    with pytest.raises(CheckpointError, match="1 missing .*class_embedding"):
        EventChatModel.from_pretrained(folder)


def test_unexpected_tensor(folder):
    rewrite(folder, lambda t: t.update(stray=torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"1 unexpected \(stray\)"):
        EventChatModel.from_pretrained(folder)


def test_other_shape(folder):
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is \[3\], not \[256\]"):
        EventChatModel.from_pretrained(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="undamaged"):
        EventChatModel.from_pretrained(folder)


def test_bin_that_would_run_code(folder, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        EventChatModel.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_embeddings_grow_for_new_tokens(folder):
    """A checkpoint from before the event tokens: rows are added, always the same ones, and noted."""
    config = json.loads((folder / "config.json").read_text())
    rows = config["vocab_size"] - 3
    rewrite(
        folder,
        lambda t: t.update({n: t[n][:rows].clone() for n in ("model.embed_tokens.weight", "lm_head.weight")}),
    )
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    first, second = (load(str(folder), device="cpu") for _ in range(2))
    assert first.adapter.model.get_input_embeddings().weight.shape[0] == rows + 3
    assert first.fingerprint == second.fingerprint
    assert "untrained" in first.adapter.notes[-1]


def test_tower_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckpt = tmp_path / "a" / "ckpt"
    ckpt.mkdir(parents=True)

    def put(path, size):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(CLIPVisionConfig(image_size=size).to_dict()))
        (path / "preprocessor_config.json").write_text(json.dumps({"crop_size": size}))

    found = lambda: resolve_tower("org/clip-x", ckpt).vision_config.image_size  # noqa: E731
    for path, size in (
        (tmp_path / "checkpoints" / "clip-x", 1),
        (ckpt / "clip-x", 2),
        (ckpt.parent / "clip-x", 3),
        (tmp_path / "org" / "clip-x", 4),
    ):
        put(path, size)
        assert found() == size, "each path found goes before the ones tried so far"


def test_well_known_tower_is_built_in(monkeypatch):
    monkeypatch.setattr("unfuse.models.eventgpt.tower.cached_file", lambda *_: pytest.fail("asked the network"))
    for name in ("openai/clip-vit-large-patch14-336", "/elsewhere/clip-vit-large-patch14-336"):
        settings = resolve_tower(name, None)
        assert settings.vision_config.hidden_size == 1024
        assert settings.vision_config.num_hidden_layers == 24
        assert settings.preprocessor["crop_size"] == {"height": 336, "width": 336}


def test_no_tower_lists_every_path(tmp_path):
    with pytest.raises(CheckpointError) as error:
        resolve_tower("clip-nowhere", tmp_path)
    message = str(error.value)
    for path in (
        f"{tmp_path.resolve().parent}/clip-nowhere",
        f"{tmp_path.resolve()}/clip-nowhere",
        "checkpoints/clip-nowhere",
        "cache",
    ):
        assert path in message
    assert "\n" not in message


def test_config_from_scratch_round_trips(tmp_path):
    config = EventChatConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        rope_scaling={"type": "linear", "factor": 2.0}, event_feature_adaptor=False,
    )  # fmt: skip
    model = EventChatModel(config).eval()
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["rope_scaling"] == {"type": "linear", "factor": 2.0}
    again = EventChatModel.from_pretrained(tmp_path).eval()
    assert again.config.rope_parameters["rope_type"] == "linear"
    pixels = torch.randn(2, 3, 28, 28)
    ids = torch.tensor([[1, 2, -200, 3]])
    wanted = model.generate(ids, event_tensors=list(pixels), do_sample=False, max_new_tokens=4)
    assert (
        again.generate(ids, event_tensors=list(pixels), do_sample=False, max_new_tokens=4).tolist() == wanted.tolist()
    )


def test_training_step_reaches_every_part(demo_model, demo_sample):
    model = EventChatModel.from_pretrained(demo_checkpoint())
    prepared = demo_model.preprocess(demo_model.load(demo_sample))
    count = prepared.media_tokens
    ids = torch.tensor([[1, 300, *[model.config.placeholder_id] * count, 301, 302]])
    loss = model(input_ids=ids, pixel_values=prepared.pixel_values[None], labels=ids.clamp(max=302)).loss
    loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None and "post_layernorm" not in n]
    assert loss.isfinite()
    assert not unused


def test_lora_round_trip(tmp_path, demo_model, demo_sample):
    peft = pytest.importorskip("peft")
    pixels = list(demo_model.preprocess(demo_model.load(demo_sample)).pixel_values)
    base = AutoModelForCausalLM.from_pretrained(demo_checkpoint())
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = peft.get_peft_model(base, lora).eval()
    wanted = tuned.base_model.model.generate(IDS, event_tensors=pixels, do_sample=False, max_new_tokens=4)
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(demo_checkpoint()), tmp_path).eval()
    got = again.base_model.model.generate(IDS, event_tensors=pixels, do_sample=False, max_new_tokens=4)
    assert got.tolist() == wanted.tolist()


def test_device_map(demo_model, demo_sample):
    pytest.importorskip("accelerate")
    pixels = list(demo_model.preprocess(demo_model.load(demo_sample)).pixel_values)
    mapped = EventChatModel.from_pretrained(demo_checkpoint(), device_map={"": "cpu"}, dtype=torch.float32)
    wanted = demo_model.adapter.model.generate(IDS, event_tensors=pixels, do_sample=False, max_new_tokens=4)
    assert mapped.generate(IDS, event_tensors=pixels, do_sample=False, max_new_tokens=4).tolist() == wanted.tolist()


QUANTISED = """
import sys, torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig
from unfuse.models.eventgpt import EventChatModel

source, target = sys.argv[1:]
kind = TorchAoConfig(Int8WeightOnlyConfig(version=2), modules_to_not_convert=["lm_head", "visual_tower"])
pixels = list(torch.randn(5, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
ids = torch.tensor([[1, 300, -200, 301]])
answers = []
model = EventChatModel.from_pretrained(source, quantization_config=kind).eval()
model.save_pretrained(target)
for model in (model, EventChatModel.from_pretrained(target).eval()):
    assert "Int8" in type(model.model.layers[0].mlp.up_proj.weight).__name__
    answers.append(model.generate(ids, event_tensors=pixels, do_sample=False, max_new_tokens=6).tolist())
assert answers[0] == answers[1], answers
"""


def test_quantised_round_trip(tmp_path):
    # In a process of its own: importing torchao logs and warns about GPU libraries that are not here.
    done = forked.run([sys.executable, "-c", QUANTISED, demo_checkpoint(), tmp_path / "q"])
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_new_model_saves_under_the_published_names(tmp_path):
    """transformers renames a weight when it saves only if it renamed the weight when it loaded."""
    loaded = EventChatModel.from_pretrained(demo_checkpoint())
    new = EventChatModel(loaded.config)
    new.save_pretrained(tmp_path / "new")
    with (
        safe_open(tmp_path / "new" / "model.safetensors", "pt") as file,
        safe_open(demo_checkpoint() / "model.safetensors", "pt") as shipped,
    ):
        assert set(file.keys()) == set(shipped.keys())
    again = EventChatModel.from_pretrained(tmp_path / "new").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in new.state_dict().items())
