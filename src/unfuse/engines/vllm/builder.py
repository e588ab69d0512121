"""Builds a vLLM engine inside this process, in the device memory that the model leaves free."""

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

from unfuse.atomic_files import make_folder
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.unsupported import Unsupported
from unfuse.engines.vllm.logits_recorder import RecorderRegistry
from unfuse.engines.vllm.weights import WeightSource, text_config, text_weights
from unfuse.records.atomic import write_json_atomic
from unfuse.user_cache import cache_home

_RESERVED_BYTES: Final = 4 << 30
"""Device memory that is left to stages 1 to 3 and the model's own forward, at most."""
_RESERVED_SHARE: Final = 0.15
"""Share of the free memory that is left to them, on a small device."""
_VLLM_WORK_BYTES: Final = 2 << 30
"""Device memory of vLLM's activations and graphs."""
_SMALL_CACHE_SHARE: Final = 1 / 8
"""Share of the free memory up to which a KV cache is allocated without profiling."""
_MAX_BLOCK: Final = 64
"""Positions of a KV-cache block, at most."""
_MIN_HEAD_DIM: Final = 32
"""From this head dimension on, vLLM's Triton attention (needed for float32) is not compiled for each shape."""
_MAX_STEP_ROWS: Final = 8192
"""Rows of a step at most. More rows delay running requests and make no matrix product faster."""


def build(
    language: LanguageModel,
    recorders: RecorderRegistry,
    *,
    capacity: int,
    enforce_eager: bool,
    cache: Path | None = None,
) -> Any:
    """Build a ``LLMEngine`` on the model's weights; the weights become views of the engine's memory.

    Args:
        language: the language model.
        recorders: record the logits of requests.
        capacity: requests that run at the same time.
        enforce_eager: do not compile or capture; for tests.
        cache: folder of the config; by default in the user's cache.

    Raises:
        Unsupported: vLLM does not support the model.
    """
    config, weights = text_config(language), text_weights(language)
    _set_defaults()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    device = language.device
    if device.type == "cuda" and config["dtype"] == "float32" and _head_dim(config) < _MIN_HEAD_DIM:
        raise Unsupported(f"vLLM has no attention ready for heads of {_head_dim(config)} in float32")
    try:
        _make_room(weights, device)
        with WeightSource(weights) as source:
            arguments = EngineArgs(
                model=str(_config_folder(config, cache)),
                skip_tokenizer_init=True,
                dtype=config["dtype"],
                max_model_len=-1,
                max_num_seqs=capacity,
                max_num_batched_tokens=_MAX_STEP_ROWS,
                enable_prompt_embeds=True,
                enable_prefix_caching=True,
                enforce_eager=enforce_eager,
                logits_processors=[recorders.processor()],
                disable_log_stats=True,
                use_tqdm_on_load=False,
                distributed_executor_backend="uni",
                seed=0,
                **memory_arguments(config, weights, device, capacity),
                **source.arguments,
            )
            vllm_config = arguments.create_engine_config()
            if device.index is not None:
                vllm_config.device_config.device = device
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                engine = LLMEngine(
                    vllm_config=vllm_config,
                    executor_class=Executor.get_class(vllm_config),
                    log_stats=False,
                    multiprocess_mode=False,
                )
        if device.type == "cuda":
            # vLLM makes its own stream the current stream.
            torch.cuda.synchronize(device)
        return engine
    finally:
        # After an error, weights may still be on the host.
        for weight in weights.values():
            weight.data = weight.data.to(device)


def _set_defaults() -> None:
    """Set environment variables of vLLM and Triton that the user has not set."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # vLLM would report the model's config and the machine to its developers.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Sampling with a seed for each request never uses it, and initialising it compiles CUDA sources.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    # Triton would round float32 operands to TF32, for example in vLLM's attention.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])


def _config_folder(config: Mapping[str, Any], cache: Path | None) -> Path:
    """Write ``config.json`` to a folder that is named by its hash: vLLM caches compiled code by the folder's name."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    folder = (cache or cache_home() / "vllm") / digest
    make_folder(folder)
    write_json_atomic(folder / "config.json", config)
    return folder


def _make_room(weights: Mapping[str, nn.Parameter], device: torch.device) -> None:
    """Move the model's weights to the host if the device cannot hold them twice."""
    if device.type != "cuda":
        return
    # An unused engine must not free its memory while vLLM profiles memory.
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    if free < _bytes(weights) + _VLLM_WORK_BYTES + _RESERVED_BYTES:
        for weight in weights.values():
            weight.data = weight.data.to("cpu")
        torch.cuda.empty_cache()


def memory_arguments(
    config: Mapping[str, Any], weights: Mapping[str, nn.Parameter], device: torch.device, capacity: int
) -> dict[str, Any]:
    """Return the device memory that vLLM may use: as much as it can use, and no more than is free.

    vLLM profiles a step to find the size of the KV cache. If the largest useful cache is small beside the free
    memory, its size is given instead: profiling a small model fails if other memory is freed meanwhile.

    Args:
        config: from ``text_config``.
        weights: from ``text_weights``.
        device: the device.
        capacity: requests that run at the same time.

    Returns:
        Arguments of vLLM's engine.
    """
    if device.type != "cuda":
        return {"gpu_memory_utilization": 0.5}
    free, total = torch.cuda.mem_get_info(device)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = next(iter(weights.values())).element_size()
    position = 2 * config["num_hidden_layers"] * heads * _head_dim(config) * width
    # One more, since vLLM reserves a block.
    cache = (capacity + 1) * (config["max_position_embeddings"] + _MAX_BLOCK) * position
    share = min(free - min(_RESERVED_BYTES, free * _RESERVED_SHARE), _bytes(weights) + cache + _VLLM_WORK_BYTES) / total
    # The weights may still be on the host.
    small = cache <= _SMALL_CACHE_SHARE * (free - _bytes(weights))
    return {"gpu_memory_utilization": float(share), "kv_cache_memory_bytes": cache if small else None}


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _bytes(weights: Mapping[str, nn.Parameter]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def shut_down(engine: Any) -> None:
    """Free the memory of a ``LLMEngine`` except the weights: the model's parameters are views of them."""
    with contextlib.suppress(AttributeError):  # an engine after a failed construction
        engine.engine_core.shutdown()
