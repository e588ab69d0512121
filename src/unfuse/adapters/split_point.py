"""The two split points of a Hugging Face multimodal model, and how its own forward is stopped at each.

    forward:  pixels --get_image_features--> | features --merge, positions, masks--> | decoder --> logits
                                      split point 1                           split point 2

``encode`` runs the forward up to split point 1. ``prefill`` runs it from there, with features encoded before, up to
split point 2; there the engine takes over. The code between them (placeholders, image newlines, M-RoPE positions,
DeepStack features, masks that are not causal) is the model's own, so no family's rules are repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

import torch
from torch import nn
from transformers import DynamicCache

from unfuse.adapters.fused_generate import generation_settings
from unfuse.errors import CutError, FeaturesError
from unfuse.stages import Prompt, Sampling

PIXELS: Final = {
    "pixel_values": "image",
    "pixel_values_images": "image",
    "pixel_values_videos": "video",
}
"""Arguments of ``forward`` that hold pixels, and the modality of the ``get_<modality>_features`` that encodes them."""
_OWN_INPUTS: Final = frozenset({"inputs_embeds", "input_ids", "past_key_values", "use_cache", "return_dict"})
_SCENE_INPUTS: Final = ("visual_pos_masks", "deepstack_visual_embeds")
"""Arguments of a decoder that affect feature positions only."""


class _SplitPointReached(Exception):  # noqa: N818 - not an error: it ends a forward that has computed enough
    """Ends a forward at a split point."""


def modalities(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modalities for which a forward with these arguments calls ``get_<modality>_features``."""
    return tuple(dict.fromkeys(kind for name, kind in PIXELS.items() if arguments.get(name) is not None))


def features_module(model: Any) -> Any:
    """Return the network that calls ``self.get_<modality>_features`` in its forward.

    Raises:
        CutError: there is no such method.
    """
    for module in (model.base_model, model):
        if hasattr(module, "get_image_features") or hasattr(module, "get_video_features"):
            return module
    raise CutError(
        f"{type(model).__name__}",
        found="no get_image_features and no get_video_features",
        expected="a model with a forward that calls one of these methods",
    )


def run_to_features(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run the forward until every medium is encoded; return the output of each ``get_<modality>_features``.

    Raises:
        CutError: the forward does not call one of them.
    """
    wanted = modalities(arguments)
    outputs: dict[str, Any] = {}
    inside = False

    def record(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # a video method may call the image method
                return original(*args, **kwargs)
            inside = True
            try:
                outputs[kind] = original(*args, **kwargs)
            finally:
                inside = False
            if len(outputs) == len(wanted):
                raise _SplitPointReached
            return outputs[kind]

        return call

    with _replaced_methods(features_module(model), record):
        try:
            model(**arguments, use_cache=False)
        except _SplitPointReached:
            return outputs
    missing = ", ".join(f"get_{kind}_features" for kind in wanted if kind not in outputs)
    raise CutError(
        type(model).__name__, found=f"a forward that does not call {missing}", expected="a forward that does"
    )


def run_to_decoder(
    model: Any, decoder: nn.Module, start: Callable[[], Any], outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Run from features to the entry of the decoder; return the arguments that it would have been called with.

    Args:
        model: the fused model.
        decoder: its text decoder.
        start: calls the model's own ``forward`` or ``generate``.
        outputs: by modality, the value that ``get_<modality>_features`` must return.

    Raises:
        FeaturesError: the model's own code rejects the features.
        CutError: the decoder is not called, or called with positional arguments.
    """
    captured: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise CutError(type(model).__name__, found="a decoder called by position", expected="by keyword")
        captured.update(kwargs)
        raise _SplitPointReached

    def substitute(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_, **__: outputs[kind] if kind in outputs else original(*_, **__)

    handle = decoder.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with _replaced_methods(features_module(model), substitute):
            start()
    except _SplitPointReached:
        return {name: value for name, value in captured.items() if name == "inputs_embeds" or name not in _OWN_INPUTS}
    except torch.OutOfMemoryError:
        raise  # not caused by the features
    except (ValueError, RuntimeError, IndexError) as error:
        raise FeaturesError(
            f"features for {type(model).__name__}", found=" ".join(str(error).split()), expected="features that fit"
        ) from None
    finally:
        handle.remove()
    raise CutError(
        type(model).__name__, found="a forward that does not call its decoder", expected="a forward that does"
    )


def prompt_from_call(
    call: dict[str, Any],
    *,
    keys: tuple[int, ...] = (),
    features_digest: str | None = None,
    attention_mask: torch.Tensor | None = None,
) -> Prompt:
    """Return the arguments of a decoder as an engine takes them."""
    embeds = call.pop("inputs_embeds")
    positions = call.pop("position_ids", None)
    kinds = (torch.Tensor, dict, list, tuple)
    rest: dict[str, Any] = {name: value for name, value in call.items() if isinstance(value, kinds)}
    rest.pop("cache_position", None)  # follows from the cache
    if isinstance(rest.get("attention_mask"), torch.Tensor) and rest["attention_mask"].dim() == 2:
        del rest["attention_mask"]
    scene: dict[str, Any] = {name: rest.pop(name) for name in _SCENE_INPUTS if name in rest}
    return Prompt(
        inputs_embeds=embeds,
        token_keys=keys,
        features_digest=features_digest,
        position_ids=positions,
        attention_mask=attention_mask,
        decoder_inputs=rest,
        scene_inputs=scene,
    )


def forward_start(model: Any, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a call of ``forward``, for one prompt, with an empty cache as the engine's own will be."""
    return lambda: model(**arguments, past_key_values=DynamicCache(), use_cache=True)


def generate_start(model: Any, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a call of ``generate``, for padded prompts: only ``generate`` computes a family's padded positions."""
    settings = generation_settings(model, 1, Sampling())
    return lambda: model.generate(**arguments, past_key_values=DynamicCache(), generation_config=settings)


def placeholder(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of any shape that occupies one element, for pixels that nothing reads."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


@contextmanager
def _replaced_methods(module: Any, make: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace ``get_<modality>_features`` while the body runs."""
    names = [f"get_{kind}_features" for kind in ("image", "video")]
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name, original in before.items():
        # With the original's signature: generate reads it to decide which arguments to pass.
        setattr(module, name, wraps(original)(make(name.split("_")[1], original)))
    try:
        yield
    finally:
        for name in before:
            delattr(module, name)
