"""Finds the config and the pixel settings of EventGPT's CLIP tower.

The checkpoint contains the tower's weights, so only two small JSON files are needed: ``config.json`` and
``preprocessor_config.json`` of the CLIP folder that ``mm_visual_tower`` names.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import try_to_load_from_cache
from transformers import CLIPVisionConfig
from transformers.utils.hub import cached_file

from unfuse.errors import CheckpointError

# Settings of openai/clip-vit-large-patch14-336, so that an offline user needs no CLIP download.
_BUILT_IN: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "clip-vit-large-patch14-336": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        {
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "resample": 3,
            "rescale_factor": 1 / 255,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "do_resize": True,
            "do_center_crop": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
        },
    )
}
_REPO_ID: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSettings:
    """Settings from the tower's folder."""

    vision_config: CLIPVisionConfig
    preprocessor: dict[str, Any]
    """Arguments of the CLIP image processor."""
    source: str
    """Location of the settings."""


def resolve_tower(name: str | None, checkpoint: str | Path | None) -> TowerSettings:
    """Return the settings from the first location that has them.

    The locations are: the path as given, beside the checkpoint folder, inside it, ``./checkpoints``, the Hugging Face
    cache, the built-in settings of well-known towers, and the hub.

    Args:
        name: ``mm_visual_tower`` of the config.
        checkpoint: the EventGPT folder, if it is one.

    Raises:
        CheckpointError: no location has them; the message lists all.
    """
    if not name:
        raise CheckpointError("config.json", found="no mm_visual_tower", expected="the name or path of the CLIP folder")
    tried: list[str] = []
    for folder in _folders(name, checkpoint):
        tried.append(str(folder))
        if (folder / "config.json").is_file():
            return _read(folder / "config.json", folder / "preprocessor_config.json")
    base = Path(name).name
    repo = name if _REPO_ID.fullmatch(name) else f"openai/{base}"
    cached = try_to_load_from_cache(repo, "config.json")
    cached_pixels = try_to_load_from_cache(repo, "preprocessor_config.json")
    tried.append(f"the Hugging Face cache ({repo})")
    if isinstance(cached, str) and isinstance(cached_pixels, str):
        return _read(Path(cached), Path(cached_pixels))
    if base in _BUILT_IN:
        shape, pixels = _BUILT_IN[base]
        return TowerSettings(
            vision_config=CLIPVisionConfig(**shape), preprocessor=dict(pixels), source=f"built in ({base})"
        )
    # A bare folder name is no hub name; a request for a guessed name would only delay an offline user.
    if repo == name:
        tried.append(f"the hub ({repo})")
        try:
            files = [cached_file(repo, file) for file in ("config.json", "preprocessor_config.json")]
        except (OSError, ValueError):
            files = []
        if files and all(files):
            return _read(Path(str(files[0])), Path(str(files[1])))
    raise CheckpointError(
        f"vision tower {name!r}",
        found="nothing at " + "; ".join(tried),
        expected="a CLIP folder with config.json and preprocessor_config.json",
        fix=f"put the folder {base!r} beside the checkpoint",
    )


def _folders(name: str, checkpoint: str | Path | None) -> list[Path]:
    base = Path(name).name
    folders = [Path(name)]
    if checkpoint is not None and Path(checkpoint).is_dir():
        root = Path(checkpoint).resolve()
        folders += [root.parent / base, root / base]
    return [*folders, Path("checkpoints") / base]


def _read(config: Path, preprocessor: Path) -> TowerSettings:
    shape = _json(config)
    # The config of a whole CLIP model contains the vision config.
    shape = shape.get("vision_config", shape)
    return TowerSettings(
        vision_config=CLIPVisionConfig.from_dict(shape),
        preprocessor=_json(preprocessor),
        source=str(config.parent),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(str(path), found="no such file", expected="the settings of the CLIP folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), found=error, expected="a JSON object") from None
    if not isinstance(value, dict):
        raise CheckpointError(str(path), found=type(value).__name__, expected="a JSON object")
    return value
