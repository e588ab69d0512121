"""Architecture of the demo model in the published checkpoint layout, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import sentencepiece

CHECKPOINT: Final = "EventGPT-demo"
TOWER: Final = "clip-vit-demo-patch14-112"

_TOKENS: Final = ("<ev_patch>", "<ev_start>", "<ev_end>")
_VISION: Final = 192
IMAGE: Final = 112


def write_layout(folder: Path, tokenizer_model: bytes) -> Path:
    """Write the folders of checkpoint and tower beside each other, without weights; return the checkpoint's path."""
    checkpoint, tower = folder / CHECKPOINT, folder / TOWER
    for path in (checkpoint, tower):
        path.mkdir(parents=True, exist_ok=True)
    vocab_size = int(sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model).get_piece_size())
    (checkpoint / "tokenizer.model").write_bytes(tokenizer_model)
    _json(checkpoint / "config.json", _model_config(vocab_size + len(_TOKENS)))
    _json(checkpoint / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    _json(checkpoint / "tokenizer_config.json", _tokenizer_config(vocab_size))
    _json(checkpoint / "added_tokens.json", {token: vocab_size + i for i, token in enumerate(_TOKENS)})
    _json(tower / "config.json", _tower_config())
    _json(tower / "preprocessor_config.json", _preprocessor_config())
    return checkpoint


def _model_config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["EventChatModel"],
        "model_type": "EventChat_llama",
        "mm_visual_tower": TOWER,
        "event_feature_adaptor": True,
        "spatial_temporal_encoder": True,
        "mm_use_im_start_end": True,
        "mm_use_im_patch_token": True,
        "vocab_size": vocabulary,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
    }


def _tokenizer_config(vocab_size: int) -> dict[str, object]:
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"} | {vocab_size + i: token for i, token in enumerate(_TOKENS)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 2048,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(_TOKENS),
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in tokens.items()},
    }


def _tower_config() -> dict[str, object]:
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": _VISION,
        "intermediate_size": 4 * _VISION,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "image_size": IMAGE,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _preprocessor_config() -> dict[str, object]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE, "width": IMAGE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }


def _json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
