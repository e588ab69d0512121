"""Checkpoints with their own processors, from a folder to an answer.

These processors need torchvision, which has no build for every torch that is tested: they are skipped, and listed,
where it is missing. What the models do with the tensors is tested without it in ``test_families``.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import tokenizers
import torch
import transformers as hf

from tests.adapters import families
from unfuse.loading import load
from unfuse.samples import Sample
from unfuse.stages import Sampling

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
SPECIAL = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<image>": families.IMAGE, "<video>": families.VIDEO, "<start>": families.START,
    "<end>": families.END, "<row_1_col_1>": families.ROW, "<fake_token_around_image>": families.BREAK,
    "<global-img>": 126, "<end_of_utterance>": 127,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}U:{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'video' %}VIDEO{% else %}IMAGE{% endif %}{% endfor %}{% endfor %}A:"
)


def tokenizer(**named):
    vocabulary = {chr(32 + i): 3 + i for i in range(95)} | SPECIAL | {"?": 3 + 31}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(list(SPECIAL))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="?",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"} | named,
    )  # fmt: skip


def chat(image="<image>", video="<video>"):
    return CHAT.replace("IMAGE", image).replace("VIDEO", video)


def sized(n, **more):
    return {"size": {"height": n, "width": n}, "crop_size": {"height": n, "width": n}, **more}


def llava_next():
    pictures = hf.LlavaNextImageProcessor(
        **sized(28) | {"size": {"shortest_edge": 28}}, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]]
    )
    return hf.LlavaNextProcessor(
        pictures, tokenizer(), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat(),
    )  # fmt: skip


def llava_onevision_video():
    pictures = hf.LlavaOnevisionImageProcessor(
        size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 28], [56, 56]]
    )
    films = hf.LlavaOnevisionVideoProcessor(size={"height": 28, "width": 28})
    return hf.LlavaOnevisionProcessor(
        pictures, tokenizer(), films, num_image_tokens=4, vision_feature_select_strategy="full", chat_template=chat()
    )


def qwen2_5_vl_video():
    edges = {"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
    pictures = hf.Qwen2VLImageProcessor(patch_size=14, temporal_patch_size=2, merge_size=2, size=edges)
    films = hf.Qwen2VLVideoProcessor(
        patch_size=14, temporal_patch_size=2, merge_size=2, size=edges, do_sample_frames=False
    )
    return hf.Qwen2_5_VLProcessor(
        pictures, tokenizer(), films, chat_template=chat("<start><image><end>", "<start><video><end>")
    )


def internvl():
    pictures = hf.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=False)
    films = hf.InternVLVideoProcessor(size={"height": 56, "width": 56})
    words = tokenizer(
        start_image_token="<start>", end_image_token="<end>", context_image_token="<image>", video_token="<video>"
    )
    return hf.InternVLProcessor(pictures, words, films, image_seq_length=4, chat_template=chat("<image>"))


def idefics3():
    edge = {"longest_edge": 28}
    pictures = hf.Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    words = tokenizer(
        fake_image_token="<fake_token_around_image>", image_token="<image>",
        end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>",
    )  # fmt: skip
    return hf.Idefics3Processor(pictures, words, image_seq_len=1, chat_template=chat())


def gemma3():
    pictures = hf.Gemma3ImageProcessor(size={"height": 28, "width": 28}, do_pan_and_scan=False)
    words = tokenizer(boi_token="<start>", eoi_token="<end>", image_token="<image>")
    return hf.Gemma3Processor(pictures, words, image_seq_length=4, chat_template=chat("<start>"))


PROCESSORS = {
    build.__name__: build for build in (llava_next, llava_onevision_video, qwen2_5_vl_video, internvl, idefics3, gemma3)
}


@needs_torchvision
@pytest.mark.parametrize("name", PROCESSORS)
def test_folder_to_answer(name, tmp_path):
    torch.manual_seed(0)
    model, _ = families.FAMILIES[name]()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model.save_pretrained(tmp_path)
    PROCESSORS[name]().save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(8)]
    with load(str(tmp_path), device="cpu", dtype="float32") as staged:
        assert staged.adapter.unsplittable is None
        prepared = staged.preprocess(staged.load(Sample.from_frames(frames, "What moves?")))
        assert prepared.media_tokens > 0
        assert prepared.num_frames == (8 if staged.adapter.takes_video else 1)
        features = staged.encode(prepared)
        answer = staged.decode(staged.prefill(prepared, features), 8)
        (whole,) = staged.adapter.fused_generate([prepared], max_new_tokens=8, sampling=Sampling())
        assert answer.token_ids == whole.token_ids
        again = staged.generate("Where to?", features, max_new_tokens=8)
        fresh = staged.preprocess(staged.load(Sample.from_frames(frames, "Where to?")))
        assert again.token_ids == staged.fused(fresh, 8).token_ids
        text = staged.preprocess(staged.load(Sample(sample_id="text", question="Say something.")))
        assert text.media_tokens == 0
        staged.decode(staged.prefill(text, staged.encode(text)), 4)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_missing_torchvision_is_one_line(tmp_path):
    from unfuse.errors import MissingPackageError

    model, _ = families.FAMILIES["qwen2_5_vl_video"]()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}'
    )
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        MissingPackageError, match="torchvision, expected this package, which the checkpoint needs. Run: "
    ):
        load(str(tmp_path), device="cpu")
