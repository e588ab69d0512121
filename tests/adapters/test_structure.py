"""Towers, projectors and decoders are found by their structure; a model without them is refused with a reason."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from tests.adapters import families
from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.split_check import find_language_model
from unfuse.adapters.split_point import run_to_decoder
from unfuse.adapters.structure import find_decoder, find_projectors, find_towers
from unfuse.benchmarking import PROTOCOLS, BenchSettings, ModelSource, bench_model, bench_several
from unfuse.engine_choice import pick_engine
from unfuse.errors import CutError, UnfuseError
from unfuse.report.comparison_tables import remarks
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel
from unfuse.unavailable import Unavailable

PARTS = {
    "llava": (["vision_tower"], ["multi_modal_projector"]),
    "video_llava": (["video_tower", "image_tower"], ["multi_modal_projector"]),
    "llava_next": (["vision_tower"], ["multi_modal_projector"]),
    "llava_onevision": (["vision_tower"], ["multi_modal_projector"]),
    "qwen2_5_vl": (["visual"], []),
    "qwen3_vl": (["visual"], []),
    "internvl": (["vision_tower"], ["multi_modal_projector"]),
    "idefics3": (["vision_model"], ["connector"]),
    "smolvlm": (["vision_model"], ["connector"]),
    "gemma3": (["vision_tower"], ["multi_modal_projector"]),
    "paligemma": (["vision_tower"], ["multi_modal_projector"]),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    model, _ = families.FAMILIES[name]()
    towers, projectors = PARTS[name]
    assert list(find_towers(model)) == towers
    assert list(find_projectors(model)) == projectors
    assert find_decoder(model) is model.get_decoder()


def test_a_tower_without_a_config_of_its_own_is_found_by_its_convolution():
    model, _ = families.llava()
    model.config.vision_config = {}
    assert "vision_tower" in find_towers(model)


def test_no_tower_is_an_error_not_zero():
    model = hf.LlamaForCausalLM(families.text())
    with pytest.raises(CutError, match="vision tower of LlamaForCausalLM"):
        find_towers(model)


class Biased(hf.LlavaForConditionalGeneration):
    """Does more with its decoder's output than its head."""

    def forward(self, input_ids=None, pixel_values=None, **kwargs):
        output = super().forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        output.logits = output.logits * torch.linspace(0, 2, output.logits.shape[-1])
        return output


class Stateful(hf.LlavaForConditionalGeneration):
    """A decoder that cannot be called without an argument of the whole model."""

    def __init__(self, config):
        super().__init__(config)
        self.model.language_model.register_forward_pre_hook(self._refuse, with_kwargs=True)
        self.ready = False
        self.model.register_forward_pre_hook(lambda *_: setattr(self, "ready", True))

    def _refuse(self, module, args, kwargs):
        if not self.ready:
            raise RuntimeError("no state")
        self.ready = False


def staged(kind):
    torch.manual_seed(0)
    source, processor = families.llava()
    model = kind(source.config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    try:
        language = find_language_model(model)
    except UnfuseError as error:
        language = Unavailable(str(error))
    adapter = HFAdapter(model, processor, "f", language=language)
    return StagedModel("model", adapter, *pick_engine("auto", adapter))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Biased, "other logits than the whole"), (Stateful, "fails by itself (RuntimeError: no state)")],
)
def test_an_unsplittable_model_has_a_reason_and_runs_fused_and_hooked(kind, reason):
    model = staged(kind)
    assert reason in model.adapter.unsplittable.reason
    frames = tuple(torch.randint(0, 255, (30, 30, 3), dtype=torch.uint8).numpy() for _ in range(2))
    data = Dataset(name="two", samples=tuple(Sample(sample_id=str(i), frames=frames) for i in range(2)))
    settings = BenchSettings(max_new_tokens=3, num_warmups=1, noise_repeats=5, balance_seconds=0)
    for protocol in ("decoupled", "reencode"):
        with pytest.raises(CutError, match=r"--protocol fused"):
            bench_model(model, data, settings, protocol=protocol)
    for protocol in ("fused", "hooked"):
        run = bench_model(model, data, settings, protocol=protocol)
        assert run.summary().num_ok == 2
        assert all(record.output_tokens == 3 for record in run.records)
    with pytest.raises(CutError, match="Use --protocol fused"):
        model.engine.decode(None, 1)
    source = ModelSource(names=("model",), load=lambda _: model)
    every = bench_several(source, list(PROTOCOLS), data, settings).result
    assert [part.protocol for part in every.parts if part.refused] == ["decoupled", "reencode"]
    assert [part.summary.num_ok for part in every.parts if not part.refused] == [2, 2]
    assert any(reason in line for line in remarks(every))


def test_encoder_decoders_are_refused():
    model, _ = families.llava()
    model.config.is_encoder_decoder = True
    with pytest.raises(CutError, match="encoder-decoder"):
        find_language_model(model)


def test_models_without_a_split_point_are_refused():
    with pytest.raises(CutError, match="get_image_features"):
        find_language_model(hf.LlamaForCausalLM(families.text()).eval())


def test_a_device_out_of_memory_is_no_fault_of_the_features():
    model, _ = families.llava()

    def starve():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run_to_decoder(model, find_decoder(model), starve, {})
