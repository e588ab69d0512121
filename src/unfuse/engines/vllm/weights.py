"""Gives vLLM a loaded model's decoder: its config through a file, its weights in memory.

vLLM copies the weights into its own matrices; projections of one input are stacked there. The model's parameters
then become views of these matrices, so the weights are stored once. The model's own forward keeps working, since it is
the reference for the engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import torch
from torch import nn

from unfuse.engines.language_model import LanguageModel
from unfuse.engines.unsupported import Unsupported

LOAD_FORMAT: Final = "unfuse"
ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""vLLM's class by ``model_type``: decoders with equal names of weights in vLLM and transformers."""
_DECODER_WEIGHTS: Final = ("embed_tokens.", "layers.", "norm.")
_NOT_IN_CONFIG: Final = {"_name_or_path", "transformers_version", "eos_token_id", "bos_token_id", "pad_token_id"}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_loaders: dict[str, Callable[[nn.Module], None]] = {}
"""By the name of their ``WeightSource``."""


def text_config(language: LanguageModel) -> dict[str, Any]:
    """Return ``config.json`` of the decoder alone.

    Raises:
        Unsupported: vLLM would not compute the same.
    """
    decoder: Any = language.decoder
    config: Any = getattr(decoder, "config", None)
    kind: Any = next((base for base in type(config).__mro__ if base.__module__.startswith("transformers.")), None)
    model_type = getattr(kind, "model_type", None)
    if model_type not in ARCHITECTURES:
        raise Unsupported(f"{type(decoder).__name__} is none of {', '.join(ARCHITECTURES)}")
    if "mrope_section" in (getattr(config, "rope_parameters", None) or {}):
        raise Unsupported(f"{type(decoder).__name__} has positions of several axes")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported("its weights are quantized")
    embedding: Any = language.embed
    head: Any = language.head
    if type(embedding) is not nn.Embedding:
        raise Unsupported(f"{type(embedding).__name__} is no plain embedding")
    if type(head) is not nn.Linear:
        raise Unsupported(f"the head is {type(head).__name__}")
    if getattr(head, "bias", None) is not None:
        raise Unsupported("the head has a bias")
    if head.weight.shape != embedding.weight.shape:
        raise Unsupported(f"the head knows {len(head.weight)} tokens, the embedding {len(embedding.weight)}")
    accepted = kind().to_dict().keys() - _NOT_IN_CONFIG
    return {
        **{key: value for key, value in config.to_dict().items() if key in accepted},
        # Each request has its own end tokens, to which vLLM would add these.
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type]],
        "vocab_size": len(embedding.weight),
        "tie_word_embeddings": head.weight is embedding.weight,
        "dtype": str(embedding.weight.dtype).removeprefix("torch."),
    }


def text_weights(language: LanguageModel) -> dict[str, nn.Parameter]:
    """Return the decoder's parameters by their names in a checkpoint.

    Raises:
        Unsupported: they have several dtypes.
    """
    named = language.decoder.named_parameters()
    weights = {f"model.{name}": parameter for name, parameter in named if name.startswith(_DECODER_WEIGHTS)}
    embedding, head = language.embed.weight, language.head.weight
    assert isinstance(embedding, nn.Parameter)
    assert isinstance(head, nn.Parameter)
    weights[_EMBEDDING] = embedding
    if head is not embedding:
        weights[_HEAD] = head
    if len(kinds := {weight.dtype for weight in weights.values()}) > 1:
        raise Unsupported(f"weights of several kinds ({', '.join(sorted(map(str, kinds)))})")
    return weights


class WeightSource:
    """Context manager: while its body runs, a vLLM that is built with ``arguments`` loads these weights."""

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._weights = weights
        self._name = str(id(self))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``EngineArgs``."""
        return {"load_format": LOAD_FORMAT, "model_loader_extra_config": {"source": self._name}}

    def __enter__(self) -> Self:
        _register()
        _loaders[self._name] = functools.partial(load_weights, self._weights)
        return self

    def __exit__(self, *_: object) -> None:
        del _loaders[self._name]


@functools.cache
def _register() -> None:
    """Register vLLM's load format ``unfuse``, once in a process."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class SharedWeightsLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM need not be installed
        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, model: nn.Module, model_config: Any) -> None:
            _loaders[self.load_config.model_loader_extra_config["source"]](model)

    register_model_loader(LOAD_FORMAT)(SharedWeightsLoader)


@torch.no_grad()
def load_weights(weights: Mapping[str, nn.Parameter], model: Any) -> None:
    """Copy weights into a vLLM model and make the parameters views of its memory.

    Args:
        weights: parameters by their names in a checkpoint.
        model: a vLLM model, with ``load_weights`` and ``packed_modules_mapping``.

    Raises:
        Unsupported: vLLM stores one of them in another form.
    """
    theirs = dict(model.named_parameters())
    views = {name: _view(name, weights, theirs, model.packed_modules_mapping) for name in weights}
    model.load_weights((name, weight.detach()) for name, weight in weights.items())
    for name, view in views.items():
        if not torch.equal(view, weights[name].to(view.device)):
            raise Unsupported(f"vLLM stores {name} in another form")
    for name, view in views.items():
        weights[name].data = view


def _view(
    name: str, weights: Mapping[str, nn.Parameter], theirs: Mapping[str, torch.Tensor], packed: Mapping[str, list[str]]
) -> torch.Tensor:
    """Return the rows of vLLM's matrix that hold a weight: all rows, or some of a stacked matrix.

    Raises:
        Unsupported: vLLM has no such rows.
    """
    *path, module, kind = name.split(".")
    stacked = ((joined, parts) for joined, parts in packed.items() if module in parts)
    joined_name, parts = next(stacked, (module, [module]))
    whole = theirs.get(".".join([*path, joined_name, kind]))
    neighbours = [weights.get(".".join([*path, part, kind])) for part in parts]
    sizes = [len(neighbour) for neighbour in neighbours if neighbour is not None]
    # vLLM pads the vocabulary to a round number of rows.
    if whole is None or len(sizes) < len(parts) or sum(sizes) > len(whole):
        raise Unsupported(f"vLLM has no parameter for {name}")
    first = sum(sizes[: parts.index(module)])
    view = whole.detach()[first : first + len(weights[name])]
    if view.shape != weights[name].shape:
        raise Unsupported(f"vLLM stores {name} as {list(view.shape)}, the model as {list(weights[name].shape)}")
    return view
