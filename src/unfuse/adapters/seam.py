"""The two seams of a Hugging Face multimodal model, and how its own forward is stopped at each.

    forward:  pixels --get_image_features--> | features --merge, positions, masks--> | decoder --> logits
                                           seam 1                                  seam 2

``encode`` runs the forward up to seam 1; ``prefill`` runs it from there, with features encoded before, up to seam 2,
and the engine takes over. What lies between (placeholders, image newlines, M-RoPE positions, DeepStack features, masks
that are not causal) is the model's own code, so no family's rules are written down a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

import torch
from torch import nn
from transformers import DynamicCache

from unfuse.adapters.fused import generation_settings
from unfuse.errors import CutError, FeaturesError
from unfuse.stages import Prompt, Sampling

PIXELS: Final = {
    "pixel_values": "image",
    "pixel_values_images": "image",
    "pixel_values_videos": "video",
}
"""Arguments of ``forward`` that hold pixels, and the method that encodes them: ``get_<modality>_features``."""
_NOT_OURS: Final = frozenset({"inputs_embeds", "input_ids", "past_key_values", "use_cache", "return_dict"})
_AT_FEATURES: Final = ("visual_pos_masks", "deepstack_visual_embeds")
"""Arguments of a decoder that change nothing but what is computed at feature positions."""


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward that has come far enough
    """A seam was reached."""


def modalities(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Which ``get_<modality>_features`` a forward with these arguments calls."""
    return tuple(dict.fromkeys(kind for name, kind in PIXELS.items() if arguments.get(name) is not None))


def seam_module(model: Any) -> Any:
    """The network whose forward calls ``self.get_<modality>_features``.

    Raises:
        CutError: there is no such method.
    """
    for module in (model.base_model, model):
        if hasattr(module, "get_image_features") or hasattr(module, "get_video_features"):
            return module
    raise CutError(
        f"{type(model).__name__}",
        found="no get_image_features and no get_video_features",
        expected="a model whose forward encodes its media through one of them",
    )


def encoded(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the forward until every medium is encoded; what each ``get_<modality>_features`` returned.

    Raises:
        CutError: the forward went on without calling one.
    """
    wanted = modalities(arguments)
    found: dict[str, Any] = {}
    inside = False

    def recording(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # video features may be made by the image method
                return original(*args, **kwargs)
            inside = True
            try:
                found[kind] = original(*args, **kwargs)
            finally:
                inside = False
            if len(found) == len(wanted):
                raise _Reached
            return found[kind]

        return call

    with _replaced(seam_module(model), recording):
        try:
            model(**arguments, use_cache=False)
        except _Reached:
            return found
    missing = ", ".join(f"get_{kind}_features" for kind in wanted if kind not in found)
    raise CutError(type(model).__name__, found=f"a forward that does not call {missing}", expected="one that does")


def decoder_call(
    model: Any, decoder: nn.Module, start: Callable[[], Any], outputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Runs from features to the decoder's door; the arguments that it would have been called with.

    Args:
        model: the fused model.
        decoder: its text decoder.
        start: starts the model's own code: its ``forward`` or its ``generate``.
        outputs: by modality, what ``get_<modality>_features`` is to return.

    Raises:
        FeaturesError: the model's own code refuses the features.
        CutError: the decoder was not called, or not by keyword.
    """
    taken: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            raise CutError(type(model).__name__, found="a decoder called by position", expected="by keyword")
        taken.update(kwargs)
        raise _Reached

    def giving(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_, **__: outputs[kind] if kind in outputs else original(*_, **__)

    handle = decoder.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with _replaced(seam_module(model), giving):
            start()
    except _Reached:
        return {name: value for name, value in taken.items() if name == "inputs_embeds" or name not in _NOT_OURS}
    except torch.OutOfMemoryError:
        raise  # no fault of the features
    except (ValueError, RuntimeError, IndexError) as error:
        raise FeaturesError(
            f"features for {type(model).__name__}", found=" ".join(str(error).split()), expected="ones that fit"
        ) from None
    finally:
        handle.remove()
    raise CutError(type(model).__name__, found="a forward that does not call its decoder", expected="one that does")


def as_prompt(
    call: dict[str, Any],
    *,
    keys: tuple[int, ...] = (),
    features_digest: str | None = None,
    attention_mask: torch.Tensor | None = None,
) -> Prompt:
    """What a decoder would have been called with, as an engine takes it."""
    embeds = call.pop("inputs_embeds")
    positions = call.pop("position_ids", None)
    kinds = (torch.Tensor, dict, list, tuple)
    rest: dict[str, Any] = {name: value for name, value in call.items() if isinstance(value, kinds)}
    rest.pop("cache_position", None)  # the cache knows
    if isinstance(rest.get("attention_mask"), torch.Tensor) and rest["attention_mask"].dim() == 2:
        del rest["attention_mask"]
    scene: dict[str, Any] = {name: rest.pop(name) for name in _AT_FEATURES if name in rest}
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
    """For one prompt: the forward itself, with an empty cache as the engine's own will be."""
    return lambda: model(**arguments, past_key_values=DynamicCache(), use_cache=True)


def generate_start(model: Any, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """For padded prompts: ``generate``, which alone knows a family's positions under padding."""
    settings = generation_settings(model, 1, Sampling())
    return lambda: model.generate(**arguments, past_key_values=DynamicCache(), generation_config=settings)


def stand_in(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of any shape that occupies one element: for pixels that will not be looked at."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


@contextmanager
def _replaced(module: Any, make: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Puts something else in the place of ``get_<modality>_features`` while the body runs."""
    names = [f"get_{kind}_features" for kind in ("image", "video")]
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    for name, original in before.items():
        # With the original's signature: generate reads it to decide what to hand over.
        setattr(module, name, wraps(original)(make(name.split("_")[1], original)))
    try:
        yield
    finally:
        for name in before:
            delattr(module, name)
