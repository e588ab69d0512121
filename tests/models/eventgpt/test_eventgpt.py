"""The network against results of the published code; see golden.json's note."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from unfuse.adapters.base import SceneInfo
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.loading import load
from unfuse.models.eventgpt import EventChatModel, EventGPTForConditionalGeneration, EventGPTProcessor
from unfuse.models.eventgpt.prompt import build_prompt, tokenize_prompt
from unfuse.samples import Sample

TOLERANCE = 1e-4


def relative(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.fixture(scope="module")
def golden(golden_dir):
    cases = json.loads((golden_dir / "golden.json").read_text())["cases"]
    numbered, seen = [], {}
    for case in cases:
        scene = case["events"].removesuffix(".npy")
        numbered.append((scene, seen.get(scene, 0), case))
        seen[scene] = seen.get(scene, 0) + 1
    return numbered, load_file(golden_dir / "golden.safetensors")


@pytest.fixture(scope="module")
def checkpoint(golden_dir):
    return golden_dir / "checkpoints" / "EventGPT-tiny"


@pytest.fixture(scope="module")
def published(checkpoint):
    return EventChatModel.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(checkpoint):
    return AutoProcessor.from_pretrained(checkpoint)


def test_prompt_and_ids(golden, processor):
    for _, _, case in golden[0]:
        assert build_prompt(case["query"]) == case["prompt"]
        assert tokenize_prompt(case["prompt"], processor.tokenizer) == case["input_ids"]


def test_tower_projector_and_pooling(golden, published):
    cases, tensors = golden
    for scene in {scene for scene, _, _ in cases}:
        pixels = tensors[f"{scene}.pixel_values"]
        with torch.no_grad():
            projected = published.visval_encode(pixels)
            features = published.get_event_features(pixels)
        assert relative(projected, tensors[f"{scene}.visval_encode"]) < TOLERANCE
        assert relative(features, tensors[f"{scene}.event_features"]) < TOLERANCE


@pytest.mark.parametrize("way", ["event_tensors", "visval_encode", "Features"])
def test_published_generate(golden, published, checkpoint, way):
    cases, tensors = golden
    staged = load(str(checkpoint), device="cpu")
    for scene, _, case in cases:
        pixels = tensors[f"{scene}.pixel_values"]
        ids = torch.tensor([case["input_ids"]])
        if way == "event_tensors":
            media = {"event_tensors": list(pixels)}
        elif way == "visval_encode":
            with torch.no_grad():
                media = {"event_features": published.visval_encode(pixels)}
        else:
            tokens = len(pixels) + published.num_patches
            scene = SceneInfo(media_sha256="golden", num_frames=len(pixels), media_tokens=tokens)
            prepared = staged.adapter.preprocessor.prepared(tuple(case["input_ids"]), scene, case["query"])
            prepared = replace(prepared, pixel_values=pixels)
            media = {"event_features": staged.encode(prepared)}
        out = published.generate(ids, **media, event_image_sizes=[480, 640], do_sample=False, max_new_tokens=48)
        assert out[0].tolist() == case["generated_ids"]


def test_staged_pipeline_from_the_file(golden, checkpoint, recordings_dir):
    cases, tensors = golden
    model = load(str(checkpoint), device="cpu")
    for scene, question, case in cases:
        sample = Sample.from_events(recordings_dir / case["events"], case["query"])
        prepared = model.preprocess(model.load(sample))
        features = model.encode(prepared)
        prefilled = model.prefill(prepared, features)
        assert prepared.input_ids[0].tolist() == case["input_ids"]
        assert prefilled.prompt_tokens == case["prompt_length"] == prepared.text_tokens + prepared.media_tokens
        assert relative(prepared.pixel_values, tensors[f"{scene}.pixel_values"]) < TOLERANCE
        assert relative(features.tensor, tensors[f"{scene}.event_features"]) < TOLERANCE
        assert relative(prefilled.logits, tensors[f"{scene}.q{question}.prefill_last_logits"]) < TOLERANCE
        assert list(model.decode(prefilled, 48).token_ids) == case["generated_ids"]
        # The same question through the API, the second and third time from the cached prefix.
        answer = model.generate(case["query"], features, max_new_tokens=48)
        assert list(answer.token_ids) == case["generated_ids"]


def native_ids(model, processor, pixels, prompt):
    blank = [[255 * torch.ones(8, 8, 3, dtype=torch.uint8).numpy()] * len(pixels)]
    inputs = processor(images=blank, text=prompt, return_tensors="pt")
    inputs["pixel_values"] = pixels[None]
    out = model.generate(**inputs, do_sample=False, max_new_tokens=48)
    length = inputs["input_ids"].shape[1]
    assert out[0, :length].tolist() == inputs["input_ids"][0].tolist(), "prompt and new ids"
    return out[0, length:].tolist()


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForCausalLM])
def test_native_generate_through_the_auto_classes(golden, checkpoint, processor, auto):
    cases, tensors = golden
    model = auto.from_pretrained(checkpoint)
    assert isinstance(model, EventGPTForConditionalGeneration)
    assert isinstance(processor, EventGPTProcessor)
    for scene, _, case in cases:
        pixels = tensors[f"{scene}.pixel_values"]
        assert native_ids(model, processor, pixels, case["prompt"]) == case["generated_ids"]


def check_folder(golden, folder):
    cases, tensors = golden
    model = AutoModelForCausalLM.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    for scene, _, case in cases[::2]:
        ids = tokenize_prompt(case["prompt"], processor.tokenizer)
        assert ids == case["input_ids"]
        pixels = list(tensors[f"{scene}.pixel_values"])
        out = model.generate(torch.tensor([ids]), event_tensors=pixels, do_sample=False, max_new_tokens=48)
        assert out[0].tolist() == case["generated_ids"]


def test_save_round_trip(golden, published, processor, tmp_path):
    published.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "EventChat_llama"
    assert config["architectures"] == ["EventChatModel"]
    assert config["rope_theta"] == 10000.0
    assert config["torch_dtype"] == "float32"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["legacy"] is True
    assert (tmp_path / "tokenizer.model").is_file()
    check_folder(golden, tmp_path)


@pytest.mark.parametrize("form", ["bin", "sharded bin", "sharded safetensors"])
def test_weight_file_forms(golden, checkpoint, tmp_path, form):
    folder = tmp_path / "EventGPT-other"
    shutil.copytree(checkpoint, folder)
    shutil.copytree(checkpoint.parent / "clip-vit-tiny-patch14-112", tmp_path / "clip-vit-tiny-patch14-112")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = [names] if form == "bin" else [names[: len(names) // 2], names[len(names) // 2 :]]
    stem, suffix = ("model", "safetensors") if "safetensors" in form else ("pytorch_model", "bin")
    files = {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}.{suffix}" if len(parts) == 1 else f"{stem}-{number:05d}-of-{len(parts):05d}.{suffix}"
        content = {key: tensors[key] for key in part}
        if suffix == "bin":
            torch.save(content, folder / name)
        else:
            save_file(content, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(part, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": files}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    check_folder(golden, folder)


def test_tokenizer_without_the_event_tokens(golden, checkpoint, tmp_path):
    folder = tmp_path / "EventGPT-plain-tokenizer"
    shutil.copytree(checkpoint, folder)
    shutil.copytree(checkpoint.parent / "clip-vit-tiny-patch14-112", tmp_path / "clip-vit-tiny-patch14-112")
    (folder / "added_tokens.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {k: v for k, v in settings["added_tokens_decoder"].items() if int(k) < 768}
    settings["additional_special_tokens"] = []
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    roles = json.loads((folder / "special_tokens_map.json").read_text())
    roles["additional_special_tokens"] = []
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    check_folder(golden, folder)


def test_adapter_is_the_only_family(checkpoint):
    assert isinstance(load(str(checkpoint), device="cpu").adapter, EventGPTAdapter)
