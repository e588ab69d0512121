"""Checks whether a model can be split: by its structure, and by the logits of a few tokens."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import DynamicCache

from unfuse.adapters.split_point import features_module, forward_start, prompt_from_call, run_to_decoder
from unfuse.adapters.structure import find_decoder
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.language_model import LanguageModel, end_ids
from unfuse.engines.positions import following
from unfuse.errors import CutError, UnfuseError

_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference of logits between the whole model and its parts, as a share of their spread, by dtype."""
_FAILURES: Final = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)


def find_language_model(model: Any) -> LanguageModel:
    """Return the text side of a fused model, after checking that it computes the model's own logits.

    A prompt of three plain tokens and one step run through the model's own forward, and through decoder, head and
    embedding. The check rejects, for example, a head with a bias, layer inputs made from ids, or a state other than
    keys and values.

    Raises:
        CutError: the model cannot be split, with the reason.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise CutError(type(model).__name__, found="an encoder-decoder", expected="a decoder that takes the features")
    features_module(model)
    if model.get_output_embeddings() is None:
        raise CutError(type(model).__name__, found="no output embeddings", expected="a head behind the decoder")
    language = LanguageModel(
        find_decoder(model), model.get_output_embeddings(), model.get_input_embeddings(), end_ids(model)
    )
    try:
        whole, parts = _whole(model), _parts(model, language)
    except UnfuseError:
        raise
    except _FAILURES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found = f"a decoder that fails by itself ({reason})"
        raise CutError(type(model).__name__, found=found, expected="a forward that runs") from None
    difference = float((whole - parts).abs().max() / whole.std().clamp(min=1e-6))
    if not difference <= _TOLERANCE[model.dtype]:
        raise CutError(
            type(model).__name__,
            found=f"decoder and head that give other logits than the whole (by {difference:.2g} of their spread)",
            expected="equal logits",
        )
    return language


@torch.no_grad()
def _whole(model: Any) -> torch.Tensor:
    ids, cache = _ids(model), DynamicCache()
    with reproducible_attention():
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        logits: torch.Tensor = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits
    return logits[0, -1].float()


@torch.no_grad()
def _parts(model: Any, language: LanguageModel) -> torch.Tensor:
    ids, cache = _ids(model), DynamicCache()
    prompt = prompt_from_call(
        run_to_decoder(model, language.decoder, forward_start(model, {"input_ids": ids[:, :-1]}), {}),
    )
    position_ids = following(prompt.position_ids)
    with reproducible_attention():
        language.prompt_logits(prompt, cache)
        return language.logits(language.embed(ids[:, -1:]), cache, position_ids=position_ids)[0].float()


def _ids(model: Any) -> torch.Tensor:
    """Return four plain token ids ``[1, 4]``: ids that the config does not mention."""
    named = {v for k, v in model.config.to_dict().items() if k.endswith(("_token_id", "_token_index", "_id"))}
    vocabulary = model.get_input_embeddings().weight.shape[0]
    plain = [i for i in range(min(vocabulary, 64)) if i not in named]
    return torch.tensor([plain[-4:]], device=model.device)
