"""A vLLM engine inside this process, in what memory the model leaves free."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from unfuse.cache import cache_home
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.unsupported import Unsupported
from unfuse.engines.vllm.handover import Offer, text_config, text_weights
from unfuse.engines.vllm.watched import Watched
from unfuse.runs.atomic import write_json_atomic

_LEFT: Final = 4 << 30
"""Bytes for stages 1 to 3 and the model's own forward, on a device that has many."""
_LEFT_SHARE: Final = 0.15
"""The same on one that has few: of what is free."""
_WORK: Final = 2 << 30
"""Bytes that vLLM itself computes in."""
_SMALL: Final = 1 / 8
"""Of what is free: a cache that needs no measuring."""
_PAGE: Final = 64
"""Positions that vLLM hands out together, at most."""
_SMALLEST_HEAD: Final = 32
"""Of vLLM's Triton attention, which float32 takes; below, one is compiled for each shape."""
_PASS: Final = 8192
"""Positions that are computed together at most: more make others wait, and no matrix product any faster."""


def build(
    language: LanguageModel,
    watched: Watched,
    *,
    capacity: int,
    enforce_eager: bool,
    cache: Path | None = None,
) -> Any:
    """A ``LLMEngine`` on the model's weights, which become views of its memory.

    Args:
        language: what it is to run.
        watched: the requests whose logits are seen.
        capacity: requests that are written at the same time.
        enforce_eager: neither compile nor capture; for tests.
        cache: folder for the model's shape; by default in the user's cache.

    Raises:
        Unsupported: vLLM would not compute the same.
    """
    shape, weights = text_config(language), text_weights(language)
    _set_defaults()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    device = language.device
    if device.type == "cuda" and shape["dtype"] == "float32" and _head_size(shape) < _SMALLEST_HEAD:
        raise Unsupported(f"vLLM has no attention ready for heads of {_head_size(shape)} in float32")
    try:
        _make_room(weights, device)
        with Offer(weights) as offer:
            arguments = EngineArgs(
                model=str(_written(shape, cache)),
                skip_tokenizer_init=True,
                dtype=shape["dtype"],
                max_model_len=-1,
                max_num_seqs=capacity,
                max_num_batched_tokens=_PASS,
                enable_prompt_embeds=True,
                enable_prefix_caching=True,
                enforce_eager=enforce_eager,
                logits_processors=[watched.processor()],
                disable_log_stats=True,
                use_tqdm_on_load=False,
                distributed_executor_backend="uni",
                seed=0,
                **memory_arguments(shape, weights, device, capacity),
                **offer.arguments,
            )
            config = arguments.create_engine_config()
            if device.index is not None:
                config.device_config.device = device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                engine = LLMEngine(
                    vllm_config=config,
                    executor_class=Executor.get_class(config),
                    log_stats=False,
                    multiprocess_mode=False,
                )
        if device.type == "cuda":
            # vLLM works on a stream of its own, which is the current one from now on.
            torch.cuda.synchronize(device)
        return engine
    finally:
        # What was moved out of the way and not taken over, after an error.
        for weight in weights.values():
            weight.data = weight.data.to(device)


def _set_defaults() -> None:
    """What vLLM and Triton read from the environment, unless the user has said otherwise."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # It would report the model's shape and the machine to its makers.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Draws with a seed for each request never take it, and making it ready compiles CUDA sources.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    # Triton's products of float32 numbers would round them to 11 bits, in vLLM's attention among others.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def _written(shape: Mapping[str, Any], cache: Path | None) -> Path:
    """A folder with the model's shape, the same one for the same shape: vLLM caches what it compiles by its name."""
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache or cache_home() / "vllm") / digest
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "config.json", shape)
    return folder


def _make_room(weights: Mapping[str, nn.Parameter], device: torch.device) -> None:
    """Where the device cannot hold the weights twice, the model's own wait on the host to be taken over."""
    if device.type != "cuda":
        return
    # An engine that is not used any more must not give its memory back in the middle of vLLM's own measuring.
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < _bytes(weights) + _WORK + _LEFT:
        for weight in weights.values():
            weight.data = weight.data.to("cpu")
        torch.cuda.empty_cache()


def memory_arguments(
    shape: Mapping[str, Any], weights: Mapping[str, nn.Parameter], device: torch.device, capacity: int
) -> dict[str, Any]:
    """Of the device's memory, what vLLM may take: as much as it can use, and no more than is free.

    How much of it the cache may be is for vLLM to measure, but where all that it can ever need is little beside what is
    free: the measuring fails where a model is so small that memory which others give back meanwhile is more than it
    takes.

    Args:
        shape: of the model, as ``text_config`` gives it.
        weights: as ``text_weights`` gives them.
        device: where.
        capacity: requests that are written at the same time.

    Returns:
        Arguments of vLLM's engine.
    """
    if device.type != "cuda":
        return {"gpu_memory_utilization": 0.5}
    free, total = torch.cuda.mem_get_info(device)
    heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
    width = next(iter(weights.values())).element_size()
    position = 2 * shape["num_hidden_layers"] * heads * _head_size(shape) * width
    # One more, for the page that vLLM keeps to itself.
    cache = (capacity + 1) * (shape["max_position_embeddings"] + _PAGE) * position
    share = min(free - min(_LEFT, free * _LEFT_SHARE), _bytes(weights) + cache + _WORK) / total
    # The weights may have yet to come back from the host.
    small = cache <= _SMALL * (free - _bytes(weights))
    return {"gpu_memory_utilization": float(share), "kv_cache_memory_bytes": cache if small else None}


def _head_size(shape: Mapping[str, Any]) -> int:
    return int(shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"])


def _bytes(weights: Mapping[str, nn.Parameter]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def closed(engine: Any) -> None:
    """Frees a ``LLMEngine``'s memory but for the weights, which the model's parameters look into."""
    with contextlib.suppress(AttributeError):  # half built
        engine.engine_core.shutdown()
