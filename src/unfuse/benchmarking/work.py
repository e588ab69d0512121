"""Count the least work of each stage for one sample: floating-point operations and bytes to move."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop
from transformers import DynamicCache

from unfuse.engines.attention import reproducible_attention
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.positions import following
from unfuse.records.work_records import StageWork
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel

_T = TypeVar("_T")


@torch.no_grad()
def stage_work(
    model: StagedModel, sample: Sample, output_tokens: int, decode_passes: int | None = None
) -> dict[str, StageWork]:
    """Return the work of ``encode``, ``prefill`` and ``decode``; it is equal for all engines.

    torch counts the operations of the model's own forward. Bytes are a lower bound: every weight once a call, the KV
    cache once a step, inputs and outputs; intermediate results may stay in the caches of a device.

    Args:
        model: loaded, with separate stages.
        sample: one that was measured.
        output_tokens: of its answer.
        decode_passes: passes that read the weights in ``decode``; by default a pass for each token after the first.
    """
    adapter, language = model.adapter, model.adapter.language
    prepared = model.preprocess(model.load(sample))
    flops, features = _counted(lambda: adapter.encode(prepared))
    vision = _unique(p for module in adapter.vision_modules().values() for p in module.parameters())
    media = prepared.pixel_values.nbytes + features.tensor.nbytes
    found = {"encode": StageWork(flops=flops, least_bytes=_bytes(vision) + media)}

    prompt = adapter.prompt(prepared, features, digest=False)
    cache = DynamicCache()
    with reproducible_attention():
        flops, logits = _counted(lambda: language.prompt_logits(prompt, cache))
    weights, cached = _bytes(_weights(language, vision)), _cache_bytes(cache)
    found["prefill"] = StageWork(flops=flops, least_bytes=weights + prompt.inputs_embeds.nbytes + cached)

    steps = max(output_tokens - 1, 0)
    bytes_per_position = cached // prompt.inputs_embeds.shape[1]
    position = following(prompt.position_ids)
    with reproducible_attention():
        flops, _ = _counted(
            lambda: language.logits(language.embed(logits.argmax(-1, keepdim=True)), cache, position_ids=position)
        )
    passes = steps if decode_passes is None else decode_passes
    read = passes * (weights + cached) + bytes_per_position * passes * (steps + 1) // 2
    found["decode"] = StageWork(flops=steps * flops, least_bytes=read)
    return found


def _counted(work: Callable[[], _T]) -> tuple[int, _T]:
    def on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop(query, key, value))

    handlers = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: on_cpu}
    with FlopCounterMode(display=False, custom_mapping=handlers) as counter:
        result = work()
    return counter.get_total_flops(), result


def _weights(language: LanguageModel, vision: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Return the weights that a call of decoder and head reads: no vision side, no embedding table."""
    others = {id(parameter) for parameter in (*vision, *language.embed.parameters())}
    head = list(language.head.parameters())
    decoder = [parameter for parameter in language.decoder.parameters() if id(parameter) not in others]
    # A head that shares the embedding table reads all of it.
    return _unique([*decoder, *head])


def _unique(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())


def _bytes(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters)


def _cache_bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
