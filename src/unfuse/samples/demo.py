"""The built-in demo: recordings and a small EventGPT checkpoint, made on this machine at first use, offline.

Both are deterministic. The checkpoint is in the published format and has random weights: it shows the stages and
their cost, and its answers mean nothing yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import platformdirs
from numpy.typing import NDArray

from unfuse.errors import DatasetError, FileAccessError
from unfuse.events import write_eventgpt_npy
from unfuse.samples.dataset import MANIFEST_NAME, Dataset, read_dataset
from unfuse.samples.sample import Sample
from unfuse.samples.simulator import Mover, Scene, simulate

_VERSION: Final = "2"
"""Part of the folder's name: raised whenever what is built below changes."""

MAX_NEW_TOKENS: Final = 64
_HIDDEN: Final = 256
_INNER: Final = 688
_LAYERS: Final = 6
_VISION: Final = 192
_VISION_LAYERS: Final = 4
_IMAGE: Final = 112
_PATCH: Final = 14
_TOKENS: Final = ("<ev_patch>", "<ev_start>", "<ev_end>")


def _box(position: tuple[int, int], velocity: tuple[int, int], radius: int, intensity: float) -> Mover:
    return Mover(shape="box", position=position, velocity=velocity, radius=radius, intensity=intensity)


def _disc(position: tuple[int, int], velocity: tuple[int, int], radius: int, intensity: float) -> Mover:
    return Mover(shape="disc", position=position, velocity=velocity, radius=radius, intensity=intensity)


_SCENES: Final[tuple[tuple[str, Scene], ...]] = (
    ("One box moves to the right.", Scene(movers=(_box((180, 240), (900, 0), 45, 0.9),), seed=1)),
    ("One dark disc falls.", Scene(movers=(_disc((320, 120), (0, 1100), 50, 0.05),), seed=2)),
    (
        "Two objects move toward each other.",
        Scene(movers=(_disc((150, 200), (800, 0), 40, 0.85), _box((500, 260), (-800, 0), 40, 0.1)), seed=3),
    ),
    ("The camera pans to the left.", Scene(movers=(), pan=(400, 0), seed=4)),
    (
        "The camera moves and a box overtakes.",
        Scene(movers=(_box((120, 330), (1200, 0), 55, 0.9),), pan=(-300, 0), seed=5),
    ),
    (
        "Three discs spread out.",
        Scene(
            movers=(
                _disc((320, 240), (900, 0), 28, 0.9),
                _disc((320, 240), (-600, 700), 28, 0.08),
                _disc((320, 240), (-500, -800), 28, 0.75),
            ),
            seed=6,
        ),
    ),
)


def demo_dataset(max_samples: int | None = None) -> Dataset:
    """The demo recordings in the instruction-set layout, simulated at first use."""
    return read_dataset(_built("recordings", _build_recordings), max_samples=max_samples)


def demo_sample(name: str) -> Sample:
    """The recording ``demo:N``.

    Raises:
        DatasetError: there is no such recording.
    """
    for sample in demo_dataset().samples:
        if sample.sample_id == name:
            return sample
    raise DatasetError(f"recording {name!r}", found="no such demo", expected=f"demo:0 to demo:{len(_SCENES) - 1}")


def demo_checkpoint() -> Path:
    """The demo model's folder, in the published checkpoint format."""
    return _built("checkpoint", _build_checkpoint) / "EventGPT-demo"


def _built(what: str, build: Callable[[Path], None]) -> Path:
    """The folder of one part; built beside its place and moved there, so that it is never seen half-made."""
    home = Path(os.environ.get("UNFUSE_CACHE") or platformdirs.user_cache_dir("unfuse"))
    place = home / f"demo-{what}-{_VERSION}"
    if place.is_dir():
        return place
    try:
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home, prefix=f".demo-{what}-"))
    except OSError as error:
        raise FileAccessError(
            str(home), found=error.strerror, expected="a writable cache folder", fix="set UNFUSE_CACHE to one"
        ) from None
    try:
        build(partial)
        # Another process may have been faster: its result is the same.
        with contextlib.suppress(OSError):
            partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _build_recordings(folder: Path) -> None:
    (folder / "event_npy" / "demo").mkdir(parents=True)
    rows = []
    for index, (answer, scene) in enumerate(_SCENES):
        name = f"demo/{index:06d}.npy"
        write_eventgpt_npy(folder / "event_npy" / name, simulate(scene))
        turns = [{"from": "human", "value": "<event>\n"}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"demo:{index}", "split": "demo", "event_data": name, "conversations": turns})
    (folder / MANIFEST_NAME).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _build_checkpoint(folder: Path) -> None:
    from safetensors.numpy import save_file

    checkpoint, tower = folder / "EventGPT-demo", folder / "clip-vit-demo-patch14-112"
    checkpoint.mkdir()
    tower.mkdir()
    tokenizer = resources.files("unfuse.samples").joinpath("demo_tokenizer.model").read_bytes()
    (checkpoint / "tokenizer.model").write_bytes(tokenizer)
    pieces = _pieces(tokenizer)
    vocabulary = pieces + len(_TOKENS)
    _json(checkpoint / "config.json", _model_config(vocabulary))
    _json(checkpoint / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    _json(checkpoint / "tokenizer_config.json", _tokenizer_config(pieces))
    _json(checkpoint / "added_tokens.json", {token: pieces + i for i, token in enumerate(_TOKENS)})
    _json(tower / "config.json", _tower_config())
    _json(tower / "preprocessor_config.json", _preprocessor_config())
    save_file(_weights(vocabulary), checkpoint / "model.safetensors", metadata={"format": "pt"})


def _weights(vocabulary: int) -> dict[str, NDArray[np.float32]]:
    """Random weights from one seeded generator; norms are 1, biases 0."""
    rng = np.random.default_rng(20260101)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0.0, 0.05, shape).astype(np.float32)

    def linear(name: str, out: int, inner: int) -> dict[str, NDArray[np.float32]]:
        return {f"{name}.weight": matrix(out, inner), f"{name}.bias": np.zeros(out, np.float32)}

    def norm(name: str, width: int) -> dict[str, NDArray[np.float32]]:
        return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}

    weights = {
        "model.embed_tokens.weight": rng.normal(0.0, 1.0, (vocabulary, _HIDDEN)).astype(np.float32),
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
        "lm_head.weight": matrix(vocabulary, _HIDDEN),
    }
    for i in range(_LAYERS):
        layer = f"model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}.self_attn.{name}.weight"] = matrix(_HIDDEN, _HIDDEN)
        for name in ("gate_proj", "up_proj"):
            weights[f"{layer}.mlp.{name}.weight"] = matrix(_INNER, _HIDDEN)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(_HIDDEN, _INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = np.ones(_HIDDEN, np.float32)
    weights |= linear("model.visual_projector.0", _HIDDEN, _VISION)
    weights |= linear("model.visual_projector.2", _HIDDEN, _HIDDEN)
    weights |= linear("model.feature_adaptor", _HIDDEN, _HIDDEN)
    tower = "model.visual_tower.visual_tower.vision_model"
    weights |= {
        f"{tower}.embeddings.class_embedding": matrix(_VISION),
        f"{tower}.embeddings.patch_embedding.weight": matrix(_VISION, 3, _PATCH, _PATCH),
        f"{tower}.embeddings.position_embedding.weight": matrix((_IMAGE // _PATCH) ** 2 + 1, _VISION),
    }
    weights |= norm(f"{tower}.pre_layrnorm", _VISION) | norm(f"{tower}.post_layernorm", _VISION)
    for i in range(_VISION_LAYERS):
        layer = f"{tower}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= linear(f"{layer}.self_attn.{name}", _VISION, _VISION)
        weights |= linear(f"{layer}.mlp.fc1", 4 * _VISION, _VISION)
        weights |= linear(f"{layer}.mlp.fc2", _VISION, 4 * _VISION)
        weights |= norm(f"{layer}.layer_norm1", _VISION) | norm(f"{layer}.layer_norm2", _VISION)
    return weights


def _model_config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["EventChatModel"],
        "model_type": "EventChat_llama",
        "mm_visual_tower": "clip-vit-demo-patch14-112",
        "event_feature_adaptor": True,
        "spatial_temporal_encoder": True,
        "mm_use_im_start_end": True,
        "mm_use_im_patch_token": True,
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
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
        "torch_dtype": "float32",
        "use_cache": True,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
    }


def _tokenizer_config(pieces: int) -> dict[str, object]:
    tokens = {0: "<unk>", 1: "<s>", 2: "</s>"} | {pieces + i: token for i, token in enumerate(_TOKENS)}
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
        "num_hidden_layers": _VISION_LAYERS,
        "image_size": _IMAGE,
        "patch_size": _PATCH,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def _preprocessor_config() -> dict[str, object]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": _IMAGE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": _IMAGE, "width": _IMAGE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }


def _pieces(model: bytes) -> int:
    import sentencepiece

    return int(sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size())


def _json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
