"""LLaVA-1.5 and Video-LLaVA without torchvision: ids and pixels are those of the families' own processors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf

from tests.adapters import families
from tests.adapters.integration import test_processors
from unfuse.adapters import hf_loading
from unfuse.adapters.clip_loading import clip_processor_of_folder
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.hf_preprocessor import HFPreprocessor
from unfuse.adapters.llava import LlavaAdapter
from unfuse.errors import CheckpointError, PromptError
from unfuse.loading import load, open_preprocessor
from unfuse.samples import Sample
from unfuse.stages import Sampling

PICTURE = {
    "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "do_convert_rgb": True, "resample": 3,
    "image_mean": [0.481, 0.457, 0.408], "image_std": [0.268, 0.261, 0.275],
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% elif c['type'] == 'video' %}<video>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}ASSISTANT:"
)


def folder(path, family, kind, *, template=True):
    torch.manual_seed(0)
    model, _ = families.FAMILIES[family]()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model.save_pretrained(path)
    test_processors.tokenizer().save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PICTURE | {"image_processor_type": kind}))
    if template:
        (path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(20)]


@pytest.mark.parametrize("template", [True, False])
def test_llava_is_its_own_processor(tmp_path, frames, template):
    checkpoint = folder(tmp_path, "llava", "CLIPImageProcessor", template=template)
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(**PICTURE), hf.AutoTokenizer.from_pretrained(checkpoint), patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    with load(str(checkpoint), device="cpu", dtype="float32") as model:
        prepared = model.preprocess(model.load(Sample.from_frames(frames, "What moves?")))
        theirs = processor(images=[frames[10]], text="USER: <image>\nWhat moves? ASSISTANT:", return_tensors="pt")
        assert torch.equal(prepared.input_ids, theirs["input_ids"])
        assert torch.equal(prepared.pixel_values, theirs["pixel_values"])
        assert (prepared.media_tokens, prepared.num_frames) == (4, 1)
        features = model.encode(prepared)
        answer = model.decode(model.prefill(prepared, features), 8)
        (whole,) = model.adapter.fused_generate([prepared], max_new_tokens=8, sampling=Sampling())
        assert answer.token_ids == whole.token_ids
        assert model.family == "llava"


def test_video_llava_sees_eight_frames_with_their_class_tokens(tmp_path, frames):
    with load(str(folder(tmp_path, "video_llava", "VideoLlavaImageProcessor")), device="cpu", dtype="float32") as model:
        prepared = model.preprocess(model.load(Sample.from_frames(frames, "What moves?")))
        assert prepared.pixel_values.shape == (1, 8, 3, 28, 28)
        assert prepared.media_tokens == 8 * 5
        expected = hf.CLIPImageProcessorPil(**PICTURE)(
            [frames[i] for i in (0, 2, 5, 7, 10, 12, 15, 17)], return_tensors="np"
        )
        np.testing.assert_array_equal(prepared.pixel_values[0].numpy(), np.asarray(expected["pixel_values"]))
        features = model.encode(prepared)
        answer = model.generate("Where to?", features, max_new_tokens=8)
        fresh = model.preprocess(model.load(Sample.from_frames(frames, "Where to?")))
        assert answer.token_ids == model.fused(fresh, 8).token_ids
        assert model.family == "video_llava"


def test_a_question_cannot_bring_placeholders(tmp_path, frames):
    sample = Sample.from_frames(frames, "What is <image> here?")
    model = load(str(folder(tmp_path, "llava", "CLIPImageProcessor")), device="cpu")
    with model, pytest.raises(PromptError, match="<image>"):
        model.preprocess(model.load(sample))


def test_a_checkpoint_without_all_its_tensors(tmp_path):
    from safetensors.torch import load_file, save_file

    checkpoint = folder(tmp_path, "llava", "CLIPImageProcessor")
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector" in name)
    save_file({k: v for k, v in weights.items() if k != name}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="1 tensors missing"):
        load(str(checkpoint), device="cpu")


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    checkpoint = folder(tmp_path, "llava", "CLIPImageProcessor")
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError) as caught:
        load(str(checkpoint), device="cpu")
    assert "\n" not in str(caught.value)


class Renamed(HFPreprocessor):
    """A preprocessor of a family's own."""

    def decode_text(self, token_ids):
        return f"renamed: {super().decode_text(token_ids)}"


@pytest.mark.parametrize("base", [LlavaAdapter, HFAdapter], ids=["CLIP", "own"])
def test_an_adapter_decides_preprocessor_and_processor_everywhere(tmp_path, monkeypatch, frames, base):
    """Both the loaded model and the preprocessor without weights use the classes of the registered adapter."""
    checkpoint = folder(tmp_path, "llava", "CLIPImageProcessor")

    class Own(base):
        preprocessor_class = Renamed

        @classmethod
        def own_processor(cls, folder, config):
            processor = clip_processor_of_folder(folder, config)
            processor.notes = ("a processor of its own",)
            return processor

    monkeypatch.setitem(hf_loading._ADAPTERS, "llava", Own)
    sample = Sample.from_frames(frames, "What moves?")
    for name in (str(checkpoint), "random:llava-tiny"):
        alone = open_preprocessor(name, "float32")
        with load(name, device="cpu", dtype="float32") as model:
            assert type(model.adapter) is Own
            assert type(model.adapter.preprocessor) is type(alone) is Renamed
            ours, theirs = (each.preprocess(each.load(sample)) for each in (alone, model.adapter.preprocessor))
            assert torch.equal(ours.input_ids, theirs.input_ids)
            assert torch.equal(ours.pixel_values, theirs.pixel_values)
            assert ("a processor of its own" in model.notes) == (name == str(checkpoint))


def test_a_registered_family_gets_its_adapter_with_the_checkpoints_own_processor(tmp_path, monkeypatch):
    """Also if the image processor is not CLIP's."""
    checkpoint = folder(tmp_path, "llava", "CLIPImageProcessor")

    class Own(HFAdapter):
        pass

    monkeypatch.setitem(hf_loading._ADAPTERS, "llava", Own)

    class AutoProcessor:
        @staticmethod
        def from_pretrained(folder, **_):
            words = hf.AutoTokenizer.from_pretrained(folder)
            return hf.LlavaProcessor(hf.CLIPImageProcessorPil(**PICTURE), words, patch_size=14)

    monkeypatch.setattr(hf_loading, "AutoProcessor", AutoProcessor)
    with load(str(checkpoint), device="cpu", dtype="float32") as model:
        assert type(model.adapter) is Own
        assert model.adapter.takes == "image"
