"""EventGPT as a Hugging Face model (arXiv 2412.00832): CLIP tower, projector, adaptor, pooling, LLaMA.

Module names are those of the published checkpoint, so its keys load and save unchanged. The calls follow Hugging Face's
conventions: ``forward(input_ids, pixel_values, labels)``, ``generate`` returns prompt and new ids, and
``get_event_features`` is Stage 3. The published calls are in ``published.py``.

Shape letters: B prompts, F frames, P patches + 1, C tower width, H hidden width, N = F + P feature positions, L ids.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import CLIPVisionModel, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from unfuse.errors import FeaturesError
from unfuse.models.eventgpt.checkpoint import StrictLoading
from unfuse.models.eventgpt.configuration_eventgpt import EventChatConfig
from unfuse.models.eventgpt.tower import TowerSettings, resolve_tower


class VisualTower(nn.Module):
    """Wraps the CLIP model, since the published checkpoint has one more level of names."""

    def __init__(self, config: EventChatConfig, settings: TowerSettings | None):
        super().__init__()
        self.visual_tower = CLIPVisionModel(config.vision_config)
        self.settings = settings

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map ``[F, 3, H, W]`` to ``last_hidden_state`` with the class token, ``[F, P, C]``."""
        hidden: torch.Tensor = self.visual_tower(pixel_values).last_hidden_state
        return hidden


class EventGPTModel(LlamaModel):
    """The LLaMA decoder, with the vision modules."""

    config_class = EventChatConfig

    def __init__(self, config: EventChatConfig):
        super().__init__(config)
        settings = None
        if config.vision_config is None:
            settings = resolve_tower(config.mm_visual_tower, config.name_or_path or None)
            config.vision_config = settings.vision_config
        self.visual_tower = VisualTower(config, settings)
        self.visual_projector = nn.Sequential(
            nn.Linear(config.vision_config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.feature_adaptor = (
            nn.Linear(config.hidden_size, config.hidden_size) if config.event_feature_adaptor else nn.Identity()
        )
        self.post_init()

    def finish_features(self, projected_FPH: torch.Tensor) -> torch.Tensor:
        """Apply adaptor and spatio-temporal pooling: ``[..., F, P, H]`` to ``[..., F + P, H]``.

        Temporal tokens are means over the patches of a frame, spatial tokens means over the frames of a patch. Temporal
        tokens come first (published ``get_spatio_temporal_features``). The adaptor is affine, so it can run after the
        means instead of before, on F + P rows instead of F * P.
        """
        pooled = torch.cat([projected_FPH.mean(dim=-2), projected_FPH.mean(dim=-3)], dim=-2)
        adapted: torch.Tensor = self.feature_adaptor(pooled)
        return adapted


class EventGPTForConditionalGeneration(StrictLoading, PreTrainedModel, GenerationMixin):
    """EventGPT with its language-model head."""

    config_class = EventChatConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer", "CLIPEncoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: EventChatConfig):
        super().__init__(config)
        self.model = EventGPTModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the language-model head."""
        return self.lm_head

    @property
    def num_patches(self) -> int:
        """P: positions per frame, the class token included."""
        return int(self.config.num_patches)

    def get_event_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Run Stage 3: return the features that replace the placeholder.

        Args:
            pixel_values: ``[B, F, 3, H, W]`` or ``[F, 3, H, W]``.

        Returns:
            ``[B, F + P, H]``, or ``[F + P, H]`` for one prompt.
        """
        frames = pixel_values.flatten(0, -4)
        projected = self.model.visual_projector(self.model.visual_tower(frames.to(self.dtype)))
        return self.model.finish_features(projected.unflatten(0, pixel_values.shape[:-3]))

    def get_placeholder_mask(self, input_ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the mask of feature positions, bool ``[B, L]``.

        Raises:
            FeaturesError: the number of placeholders is not that of feature positions, so features would silently
                shift to wrong positions.
        """
        mask = input_ids == self.config.placeholder_id
        wanted = features.numel() // features.shape[-1]
        if int(mask.sum()) != wanted:
            raise FeaturesError(
                "event placeholders in input_ids",
                found=int(mask.sum()),
                expected=f"{wanted}, one per feature position",
            )
        return mask

    def forward(  # noqa: PLR0913  # overrides transformers' forward
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        event_features: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return next-token logits, and the loss if ``labels`` are given.

        Args:
            input_ids: ``[B, L]``, ``<ev_patch>`` once per feature position.
            attention_mask: ``[B, L]``.
            position_ids: ``[B, L]``.
            past_key_values: keys and values of earlier positions.
            inputs_embeds: ``[B, L, H]`` instead of ``input_ids``.
            labels: ``[B, L]``, -100 for positions without a loss.
            use_cache: whether keys and values are returned.
            pixel_values: ``[B, F, 3, H, W]``.
            event_features: ``[B, N, H]`` from ``get_event_features``, instead of pixels.
            logits_to_keep: number of last positions to compute logits for.
            **kwargs: passed to the decoder.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise FeaturesError("forward", found="neither input_ids nor inputs_embeds", expected="one of them")
            features = event_features
            if pixel_values is not None:
                if features is not None:
                    raise FeaturesError("forward", found="pixel_values and event_features", expected="one of them")
                features = self.get_event_features(pixel_values)
            if features is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            else:
                mask = self.get_placeholder_mask(input_ids, features)
                # The placeholder may lie outside the vocabulary; its own embedding is never used.
                inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(mask, 0))
                inputs_embeds = inputs_embeds.masked_scatter(
                    mask.unsqueeze(-1), features.to(inputs_embeds.device, inputs_embeds.dtype)
                )
        outputs = self.model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.lm_head.out_features, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        event_features: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Pass pixels or features to the first step only, so that later steps do not encode again."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "event_features": event_features}
        return inputs
