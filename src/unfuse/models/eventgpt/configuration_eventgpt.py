"""The published EventGPT configuration: a flat LLaMA config with a few ``mm_*`` fields.

It is read unchanged and written in the same flat form, as transformers 4.37 reads it too.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, LlamaConfig


@strict
class EventChatConfig(LlamaConfig):
    """Configuration of EventGPT (arXiv 2412.00832); field names as published."""

    model_type = "EventChat_llama"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": CLIPVisionConfig}

    mm_visual_tower: str | None = None
    """Name or path of the CLIP folder that gives the tower's shape and the pixel settings."""
    event_feature_adaptor: bool = False
    """Whether a Linear (hidden -> hidden) follows the projector."""
    spatial_temporal_encoder: bool = False
    """Has no effect: the published code always pools over frames."""
    mm_use_im_start_end: bool = False
    """Whether ``<ev_start>`` and ``<ev_end>`` are tokens."""
    mm_use_im_patch_token: bool = True
    """Whether ``<ev_patch>`` is a token."""
    tokenizer_model_max_length: int = 2048
    """Longest prompt, in positions after the event placeholder is replaced by features."""
    tokenizer_padding_side: str = "right"
    event_token_id: int | None = None
    """Id of ``<ev_patch>``. None in published folders: it is then the tokenizer's."""
    vision_config: dict[str, Any] | CLIPVisionConfig | None = None
    """The tower's shape. None in published folders: it is then looked up by ``mm_visual_tower``."""

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.vision_config, dict):
            self.vision_config = CLIPVisionConfig(**self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def placeholder_id(self) -> int:
        """Id of ``<ev_patch>``: the event tokens are the last ones, the patch token the first of them."""
        if self.event_token_id is not None:
            return self.event_token_id
        added = self.mm_use_im_patch_token + 2 * self.mm_use_im_start_end
        return self.vocab_size - added if self.mm_use_im_patch_token else self.vocab_size

    @property
    def num_patches(self) -> int:
        """P: positions per frame, the class token included; once ``vision_config`` is known."""
        vision: Any = self.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 + 1)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content of ``config.json``, in the flat published form.

        Every architecture field is written, since defaults differ between versions.
        """
        full = self.to_dict()
        changed = super().to_diff_dict()
        architecture = type(self).__annotations__ | LlamaConfig.__annotations__
        return _flat({key: value for key, value in full.items() if key in changed or key in architecture})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write ``config.json`` in the flat published form."""
        # The published code supports this architecture name only; the HF-native class reads the same folder.
        self.architectures = ["EventChatModel"]
        super().save_pretrained(save_directory, **kwargs)


def _flat(written: dict[str, Any]) -> dict[str, Any]:
    rope = dict(written.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", 10000.0)
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    # transformers 4.37 accepts `type` with `factor` and no other key; newer ones read `type` as `rope_type`.
    scaling = None if kind == "default" else {"type": kind, **rope}
    flat = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype")}
    return flat | {"rope_theta": theta, "rope_scaling": scaling, "torch_dtype": written.get("dtype")}
