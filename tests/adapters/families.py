"""Tiny random models of each family, and processors that build their tensors without torchvision.

Every builder gives a model and a ``Processor`` that treats the ids like the family's own processor: the number
and order of placeholders, row and column tokens, type ids, grids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers as hf

from unfuse.adapters.hf import HFAdapter
from unfuse.adapters.split_check import find_language_model
from unfuse.adapters.video_llava import VideoLlavaAdapter
from unfuse.engine_choice import pick_engine
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded

H, LAYERS, HEADS, VOCAB = 64, 3, 4, 128
IMAGE, VIDEO, START, END, ROW, BREAK = 120, 121, 122, 123, 124, 125
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def text(kind=hf.LlamaConfig, **more):
    return kind(
        vocab_size=VOCAB, hidden_size=H, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        **({"num_key_value_heads": 2} | ENDS | more),
    )  # fmt: skip


def clip(**more):
    return hf.CLIPVisionConfig(
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
           "image_size": 28, "patch_size": 14} | more,
    )  # fmt: skip


def siglip(**more):
    return hf.SiglipVisionConfig(
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
           "image_size": 28, "patch_size": 14, "vision_use_head": False} | more,
    )  # fmt: skip


def vit(**more):
    return {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2} | more


def qwen_vit(**more):
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": H, "patch_size": 14,
        "temporal_patch_size": 2, "spatial_merge_size": 2,
    } | more  # fmt: skip


def mrope_text(**more):
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    words = text(hf.Qwen2Config).to_dict() | {"rope_parameters": rope} | more
    words.pop("model_type", None)
    return words


class Built:
    """A processor for tests: words are byte ids below 100."""

    def __init__(self, media, *, video=False):
        self._media = media
        self.video = video

    def inputs(self, frames, question):
        tensors = self._media(frames) if frames else {"media_ids": []}
        return self._joined(tensors, question)

    def text_inputs(self, frame_sizes, media_tokens, question):
        return self.inputs([np.zeros((*size, 3), np.uint8) for size in frame_sizes], question)

    def _joined(self, tensors, question):
        ids = [1, 40, *tensors.pop("media_ids"), *(3 + byte % 90 for byte in question.encode()), 41]
        ids = torch.tensor([ids])
        for name, marked in tensors.pop("types", {}).items():
            tensors[name] = sum(((ids == token).int() * kind for token, kind in marked.items()), torch.zeros_like(ids))
        if "suffix_types" in tensors:
            tensors[tensors.pop("suffix_types")] = torch.zeros_like(ids)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))


def pixels(frame, size):
    """``[3, size, size]``: the frame repeated or cropped to a square, in [-1, 1]."""
    rows = np.arange(size) % frame.shape[0]
    columns = np.arange(size) % frame.shape[1]
    picture = frame[rows][:, columns].astype(np.float32) / 127.5 - 1
    return torch.from_numpy(picture).permute(2, 0, 1)


def llava(**more):
    config = hf.LlavaConfig(vision_config=clip(), text_config=text(), image_token_id=IMAGE, **more)
    positions = 5 if more.get("vision_feature_select_strategy") == "full" else 4

    def media(frames):
        stack = torch.stack([pixels(frame, 28) for frame in frames])
        return {"media_ids": [IMAGE] * positions * len(frames), "pixel_values": stack}

    return hf.LlavaForConditionalGeneration(config), Built(media)


def llava_deep():
    """Features of several tower layers side by side."""
    return llava(vision_feature_layer=[-2, -1])


def video_llava():
    config = hf.VideoLlavaConfig(vision_config=clip(), text_config=text(), image_token_id=IMAGE, video_token_id=VIDEO)

    def media(frames):
        stack = torch.stack([pixels(frame, 28) for frame in frames]).unsqueeze(0)
        return {"media_ids": [VIDEO] * 5 * len(frames), "pixel_values_videos": stack}

    return hf.VideoLlavaForConditionalGeneration(config), Built(media, video=True)


def llava_next():
    config = hf.LlavaNextConfig(
        vision_config=clip(),
        text_config=text(),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    )
    model = hf.LlavaNextForConditionalGeneration(config)

    def media(frames):
        sizes = torch.tensor([[frame.shape[0], frame.shape[1]] for frame in frames])
        ids, tiles = [], []
        for frame in frames:
            best = hf.models.llava_next.modeling_llava_next.get_anyres_image_grid_shape(
                frame.shape[:2], config.image_grid_pinpoints, 28
            )
            count = best[0] * best[1] + 1
            tiles.append(torch.stack([pixels(frame[i:], 28) for i in range(count)]))
            ids += [IMAGE] * unpadded(frame.shape[:2], best, side=2)
        most = max(len(tile) for tile in tiles)
        stack = [torch.nn.functional.pad(tile, (0, 0, 0, 0, 0, 0, 0, most - len(tile))) for tile in tiles]
        return {"media_ids": ids, "pixel_values": torch.stack(stack), "image_sizes": sizes}

    return model, Built(media)


def unpadded(size, grid, *, side):
    """Positions of LLaVA-NeXT's "spatial unpad": base picture, cropped grid, one newline a row."""
    height, width = grid[0] * side, grid[1] * side
    if size[1] / size[0] > width / height:
        height -= 2 * ((height - int(round(size[0] * (width / size[1]), 7))) // 2)
    else:
        width -= 2 * ((width - int(round(size[1] * (height / size[0]), 7))) // 2)
    return side * side + height * width + height


def llava_onevision(*, video=False):
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(), text_config=text(hf.Qwen2Config), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[[28, 28], [56, 56]], vision_feature_select_strategy="full",
    )  # fmt: skip
    model = hf.LlavaOnevisionForConditionalGeneration(config)

    def as_video(frames):
        stack = torch.stack([pixels(frame, 28) for frame in frames]).unsqueeze(0)
        return {"media_ids": [VIDEO] * (len(frames) * 1 + 1), "pixel_values_videos": stack}

    def as_images(frames):
        sizes = torch.tensor([[frame.shape[0], frame.shape[1]] for frame in frames])
        tiles = torch.stack([torch.stack([pixels(frame[i:], 28) for i in range(5)]) for frame in frames])
        ids = [IMAGE] * sum(unpadded(frame.shape[:2], (2, 2), side=2) for frame in frames)
        return {"media_ids": ids, "pixel_values": tiles, "image_sizes": sizes}

    return model, Built(as_video if video else as_images, video=video)


def llava_onevision_video():
    return llava_onevision(video=True)


def _qwen(model, config, *, video, temporal=1):
    """Patches [n, 3 * temporal * 14 * 14] of 4 x 6 patches a frame, merged 2 x 2."""

    def media(frames):
        grid = [[len(frames), 4, 6]] if video else [[1, 4, 6]] * len(frames)
        each = [
            pixels(frame, 84).reshape(3, 6, 14, 6, 14)[:, :4].permute(1, 3, 0, 2, 4).reshape(24, -1) for frame in frames
        ]
        flat = torch.cat(each).repeat_interleave(config.vision_config.temporal_patch_size, 1)
        block = [START, *[VIDEO if video else IMAGE] * 6, END]
        name = "video" if video else "image"
        if video and not separate:
            block = [START, *[VIDEO] * 6 * len(frames), END]
            blocks = 1
        else:
            blocks = len(frames)
        return {
            "media_ids": block * blocks,
            "pixel_values_videos" if video else "pixel_values": flat,
            f"{name}_grid_thw": torch.tensor(grid),
            "types": {"mm_token_type_ids": {IMAGE: 1, VIDEO: 2}},
        }

    separate = "Qwen3" in type(model).__name__
    return model.eval(), Built(media, video=video)


def qwen2_5_vl(*, video=False):
    vision = qwen_vit(depth=3, window_size=56, fullatt_block_indexes=[1])
    words = mrope_text()
    config = hf.Qwen2_5_VLConfig(
        text_config=words, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return _qwen(hf.Qwen2_5_VLForConditionalGeneration(config), config, video=video)


def qwen2_5_vl_video():
    return qwen2_5_vl(video=True)


def qwen3_vl(*, video=False):
    vision = qwen_vit(depth=4, deepstack_visual_indexes=[1, 2], num_position_embeddings=64)
    words = mrope_text(head_dim=16)
    config = hf.Qwen3VLConfig(
        text_config=words, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return _qwen(hf.Qwen3VLForConditionalGeneration(config), config, video=video)


def qwen3_vl_video():
    return qwen3_vl(video=True)


def internvl():
    vision = vit(image_size=[56, 56], patch_size=[14, 14])
    config = hf.InternVLConfig(
        vision_config=vision, text_config=text(hf.Qwen2Config), image_token_id=IMAGE, downsample_ratio=0.5
    )

    def media(frames):
        stack = torch.stack([pixels(frame, 56) for frame in frames])
        return {"media_ids": [START, *[IMAGE] * 4, END] * len(frames), "pixel_values": stack}

    return hf.InternVLForConditionalGeneration(config), Built(media)


def _idefics(config, model):
    def media(frames):
        stack = torch.stack([pixels(frame, 28) for frame in frames]).unsqueeze(0)
        mask = torch.ones(1, len(frames), 28, 28, dtype=torch.bool)
        ids = [BREAK, ROW, *[IMAGE] * 1, BREAK] * len(frames)
        return {"media_ids": ids, "pixel_values": stack, "pixel_attention_mask": mask}

    return model, Built(media)


def idefics3():
    vision = vit(image_size=28, patch_size=14)
    config = hf.Idefics3Config(vision_config=vision, text_config=text(), image_token_id=IMAGE, scale_factor=2)
    return _idefics(config, hf.Idefics3ForConditionalGeneration(config))


def smolvlm():
    vision = vit(image_size=28, patch_size=14)
    config = hf.SmolVLMConfig(vision_config=vision, text_config=text(), image_token_id=IMAGE, scale_factor=2)
    return _idefics(config, hf.SmolVLMForConditionalGeneration(config))


def gemma3():
    words = text(
        hf.Gemma3TextConfig,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    config = hf.Gemma3Config(
        text_config=words,
        vision_config=siglip(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        **ENDS,
    )

    def media(frames):
        stack = torch.stack([pixels(frame, 28) for frame in frames])
        types = {"token_type_ids": {IMAGE: 1}}
        return {"media_ids": [START, *[IMAGE] * 4, END] * len(frames), "pixel_values": stack, "types": types}

    return hf.Gemma3ForConditionalGeneration(config), Built(media)


def paligemma():
    config = hf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=H), text_config=text(hf.GemmaConfig, head_dim=16), image_token_index=IMAGE,
        projection_dim=H, hidden_size=H, **ENDS,
    )  # fmt: skip

    def media(frames):
        stack = torch.stack([pixels(frame, 28) for frame in frames])
        return {"media_ids": [IMAGE] * 4 * len(frames), "pixel_values": stack, "suffix_types": "token_type_ids"}

    return hf.PaliGemmaForConditionalGeneration(config), Built(media)


FAMILIES = {
    build.__name__: build
    for build in (
        llava, llava_deep, video_llava, llava_next, llava_onevision, llava_onevision_video, qwen2_5_vl,
        qwen2_5_vl_video, qwen3_vl, qwen3_vl_video, internvl, idefics3, smolvlm, gemma3, paligemma,
    )
}  # fmt: skip


@dataclass
class Family:
    """One family's tiny model, and the arguments of a question to it."""

    name: str
    staged: StagedModel
    processor: Built

    @property
    def adapter(self):
        return self.staged.adapter

    def prepare(self, count, question, seed=0):
        """A prompt with ``count`` frames of different sizes, or one video of as many."""
        rng = np.random.default_rng(seed)
        frames = [rng.integers(0, 256, (40 + 8 * i, 50, 3), dtype=np.uint8) for i in range(count)]
        loaded = Loaded(frames=frames, media="frames", media_sha256=f"{seed}", question=question)
        return self.staged.preprocess(loaded)


def build(name, *, device="cpu", dtype=torch.float32, engine="eager"):
    """The family's tiny model with an engine."""
    torch.manual_seed(7)
    model, processor = FAMILIES[name]()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # Wide enough that other features and other words give other answers.
            scale = 1.0 if "embed_tokens" in key or "lm_head" in key else 0.12
            weight.copy_(
                torch.randn_like(weight) * scale if weight.dim() > 1 else weight + torch.randn_like(weight) * 0.1
            )
    model = model.to(device, dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    language = find_language_model(model)
    make = VideoLlavaAdapter if name == "video_llava" else HFAdapter
    adapter = make(model, processor, "a fingerprint", language=language, takes_video=processor.video)
    chosen, notes = pick_engine(engine, adapter)
    return Family(name, StagedModel(name, adapter, chosen, notes=notes), processor)
