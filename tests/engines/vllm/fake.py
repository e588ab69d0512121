"""A fake of vLLM on the CPU: the part of its API that engine ``vllm`` uses, over Hugging Face's own decoders.

As vLLM does, it holds joined matrices of its own and fills up the vocabulary, takes weights by their names in a
checkpoint and prompts as embeddings on the host, knows prefixes by block, salt and bytes, has every output one step
late, and knows nothing of a request but what it is given. Names and arguments are those of vLLM 0.24; what it does not
know it refuses.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import sys
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import DynamicCache

BLOCK = 16
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
ARCHITECTURES = {
    "LlamaForCausalLM": (transformers.LlamaConfig, transformers.LlamaModel),
    "MistralForCausalLM": (transformers.MistralConfig, transformers.MistralModel),
    "Qwen2ForCausalLM": (transformers.Qwen2Config, transformers.Qwen2Model),
    "Qwen3ForCausalLM": (transformers.Qwen3Config, transformers.Qwen3Model),
}
LOADERS: dict[str, type] = {}
built: list[LLMEngine] = []
"""Every engine that was made, for tests to look into."""


@dataclass(kw_only=True)
class EngineArgs:
    model: str
    dtype: str = "auto"
    load_format: str = "auto"
    model_loader_extra_config: dict[str, Any] = field(default_factory=dict)
    skip_tokenizer_init: bool = False
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    enable_prompt_embeds: bool = False
    enable_prefix_caching: bool = False
    enforce_eager: bool = False
    logits_processors: list[type] = field(default_factory=list)
    disable_log_stats: bool = False
    use_tqdm_on_load: bool = True
    distributed_executor_backend: str | None = None
    seed: int = 0

    def create_engine_config(self):
        shape = json.loads((Path(self.model) / "config.json").read_text())
        limit = shape["max_position_embeddings"]
        longest = limit if self.max_model_len in (None, -1) else self.max_model_len
        return SimpleNamespace(
            args=self,
            shape=shape,
            model_config=SimpleNamespace(max_model_len=min(limit, longest)),
            device_config=SimpleNamespace(device=None),
            load_config=SimpleNamespace(
                load_format=self.load_format, model_loader_extra_config=self.model_loader_extra_config
            ),
        )


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True
    output_kind: str = "cumulative"
    extra_args: dict[str, Any] | None = None

    def __post_init__(self):
        assert self.max_tokens is not None
        assert self.max_tokens >= 1
        assert self.min_tokens <= self.max_tokens
        assert self.temperature == 0 or 0.01 <= self.temperature <= 2


class AdapterLogitsProcessor(ABC):
    def __init__(self, vllm_config, device, is_pin_memory):
        self.device = device
        self.req_info = {}

    def apply(self, logits):
        for row, bound in self.req_info.items():
            logits[row] = bound(logits[row])
        return logits

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def new_req_logits_processor(self, params): ...


class BaseModelLoader(ABC):
    def __init__(self, load_config):
        self.load_config = load_config

    @abstractmethod
    def download_model(self, model_config): ...

    @abstractmethod
    def load_weights(self, model, model_config): ...


def register_model_loader(name):
    def register(kind):
        LOADERS[name] = kind
        return kind

    return register


def embeds_input(prompt_embeds, *, cache_salt=None):
    return {"type": "embeds", "prompt_embeds": prompt_embeds} | ({"cache_salt": cache_salt} if cache_salt else {})


class Model:
    """A decoder with weights in stacked matrices, and a head over a padded vocabulary."""

    packed_modules_mapping = PACKED

    def __init__(self, shape):
        (architecture,) = shape["architectures"]
        config_kind, kind = ARCHITECTURES[architecture]
        dtype = getattr(torch, shape["dtype"])
        self.decoder = kind(config_kind(**shape)).to(dtype).eval()
        self.vocabulary = shape["vocab_size"]
        filled = -(-self.vocabulary // 64) * 64
        self.embedding = nn.Parameter(torch.zeros(filled, shape["hidden_size"], dtype=dtype))
        self.head = self.embedding if shape["tie_word_embeddings"] else nn.Parameter(self.embedding.detach().clone())
        self._parts = {"model.embed_tokens.weight": self.embedding.data}
        self._named = {"model.embed_tokens.weight": self.embedding}
        if self.head is not self.embedding:
            self._named["lm_head.weight"], self._parts["lm_head.weight"] = self.head, self.head.data
        del self.decoder.embed_tokens
        own = {f"model.{name}": parameter for name, parameter in self.decoder.named_parameters()}
        for name in own:
            *path, module, kind = name.split(".")
            joined = next((j for j, parts in PACKED.items() if module in parts), None)
            if joined is None:
                self._named[name], self._parts[name] = own[name], own[name].data
            elif module == PACKED[joined][0]:
                names = [".".join([*path, part, kind]) for part in PACKED[joined]]
                whole = nn.Parameter(torch.cat([own[each].data for each in names]))
                self._named[".".join([*path, joined, kind])] = whole
                for each, rows in zip(names, whole.data.split([len(own[each]) for each in names]), strict=True):
                    own[each].data = self._parts[each] = rows

    def load_weights(self, weights):
        for name, weight in weights:
            part = self._parts[name]
            part[: len(weight)].copy_(weight)

    def named_parameters(self):
        return self._named.items()

    def logits(self, embeds, cache):
        hidden = self.decoder(inputs_embeds=embeds[None], past_key_values=cache, use_cache=True).last_hidden_state
        return (hidden[0, -1] @ self.head.T)[: self.vocabulary]


@dataclass
class _Request:
    name: str
    embeds: torch.Tensor
    cache_salt: str | None
    params: SamplingParams
    watch: list[Any]
    """Of each processor: its own for this request, or None."""
    cache: DynamicCache = field(default_factory=DynamicCache)
    output: list[int] = field(default_factory=list)
    cached: int = 0
    generator: torch.Generator | None = None
    _prompt_embeds_per_block_hashes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    keys: list[Any] = field(default_factory=list)


class LLMEngine:
    def __init__(self, vllm_config, executor_class, log_stats, multiprocess_mode=False):
        assert executor_class == "executor"
        assert not multiprocess_mode
        assert not log_stats
        self.args = vllm_config.args
        assert self.args.enable_prompt_embeds
        assert self.args.skip_tokenizer_init
        torch.manual_seed(self.args.seed)
        self.vllm_config, self.model_config = vllm_config, vllm_config.model_config
        with torch.no_grad():
            self.model = Model(vllm_config.shape)
            loader = LOADERS[self.args.load_format](vllm_config.load_config)
            loader.load_weights(self.model, self.model_config)
        self._processors = [kind(vllm_config, torch.device("cpu"), False) for kind in self.args.logits_processors]
        self._core = SimpleNamespace(request_block_hasher=self._hashes)
        self.engine_core = SimpleNamespace(shutdown=self._shutdown, engine_core=self._core)
        self.hashed_rows = 0
        self._waiting: deque[_Request] = deque()
        self.running: dict[str, _Request] = {}
        self._late: list[Any] | None = None
        self._blocks: dict[Any, list[Any]] = {}
        self.most_running = 0
        self.steps = 0
        self.shut = False
        built.append(self)

    def _shutdown(self):
        self.shut = True

    def add_request(self, request_id, prompt, params):
        assert not self.shut
        assert prompt["type"] == "embeds"
        embeds = prompt["prompt_embeds"]
        assert embeds.device.type == "cpu"
        assert embeds.dim() == 2
        assert 0 < len(embeds) <= self.model_config.max_model_len
        watch = [p.new_req_logits_processor(params) for p in self._processors]
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        request = _Request(request_id, embeds, prompt.get("cache_salt"), params, watch, generator=generator)
        request.keys = self._core.request_block_hasher(request)
        self._waiting.append(request)
        return request_id

    def _hashes(self, request):
        """Return hashes of whole blocks, each with all blocks before it; only embeddings and the salt are hashed."""
        keys, chain = [], (request.cache_salt,)
        for end in range(BLOCK, len(request.embeds) + 1, BLOCK):
            found = request._prompt_embeds_per_block_hashes.get((end - BLOCK, end))
            if found is None:
                self.hashed_rows += BLOCK
                found = hashlib.sha256(request.embeds[end - BLOCK : end].numpy().tobytes()).digest()
            chain = (*chain, found)
            keys.append(chain)
        return keys

    def has_unfinished_requests(self):
        return bool(self._waiting or self.running or self._late)

    def abort_request(self, request_ids):
        self._waiting = deque(r for r in self._waiting if r.name not in request_ids)
        for name in request_ids:
            self.running.pop(name, None)

    @torch.no_grad()
    def step(self):
        """Return the tokens of the step before; the first step after a pause returns none."""
        late, self._late = self._late, None
        self.steps += 1
        while self._waiting and len(self.running) < self.args.max_num_seqs:
            request = self._waiting.popleft()
            self.running[request.name] = request
        self.most_running = max(self.most_running, len(self.running))
        if self.running:
            self._late = [self._advance(request) for request in list(self.running.values())]
        elif not late:
            assert not self._late
        return late or []

    def _advance(self, request):
        params = request.params
        if not request.output:
            logits = self._prefill(request)
        else:
            row = self.model.embedding[request.output[-1]][None]
            logits = self.model.logits(row, request.cache)
        token = self._choose(request, logits.float())
        request.output.append(token)
        reason = None
        if token in params.stop_token_ids and len(request.output) > params.min_tokens - 1:
            reason = "stop"
        elif len(request.output) == min(params.max_tokens, self.model_config.max_model_len - len(request.embeds)):
            reason = "length"
        if reason:
            del self.running[request.name]
        answer = SimpleNamespace(token_ids=[token], finish_reason=reason)
        return SimpleNamespace(
            request_id=request.name,
            outputs=[answer],
            finished=reason is not None,
            num_cached_tokens=request.cached,
        )

    def _choose(self, request, logits):
        params = request.params
        if len(request.output) < params.min_tokens:
            logits[params.stop_token_ids] = float("-inf")
        for processor, watch in zip(self._processors, request.watch, strict=True):
            # A batch of one row, whose list of new tokens is bound to the request's processor.
            processor.req_info = {} if watch is None else {0: partial(watch, request.output)}
            logits = processor.apply(logits[None])[0]
        if params.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / params.temperature, -1)
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= params.top_p
        probabilities[order[outside]] = 0
        return int((probabilities / torch.empty_like(logits).exponential_(generator=request.generator)).argmax())

    def _prefill(self, request):
        """From the longest chain of cached blocks on, one position at least."""
        keys = request.keys
        hits = 0
        while hits < len(keys) and keys[hits] in self._blocks and (hits + 1) * BLOCK < len(request.embeds):
            for layer, (k, v) in enumerate(self._blocks[keys[hits]]):
                request.cache.update(k, v, layer)
            hits += 1
        request.cached = hits * BLOCK
        logits = self.model.logits(request.embeds[request.cached :], request.cache)
        for index, key in enumerate(keys):
            span = slice(index * BLOCK, (index + 1) * BLOCK)
            self._blocks[key] = [(x.keys[:, :, span], x.values[:, :, span]) for x in request.cache.layers]
        return logits


def modules():
    """By name, as they go into ``sys.modules``."""

    def module(name, **names):
        made = ModuleType(name)
        made.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(made).update(names)
        return made

    parts = [
        module("vllm", __version__="0.24.0+fake", SamplingParams=SamplingParams, __path__=[]),
        module("vllm.inputs", embeds_input=embeds_input),
        module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(DELTA="delta")),
        module("vllm.engine", __path__=[]),
        module("vllm.engine.arg_utils", EngineArgs=EngineArgs),
        module("vllm.v1", __path__=[]),
        module("vllm.v1.engine", __path__=[]),
        module("vllm.v1.engine.llm_engine", LLMEngine=LLMEngine),
        module("vllm.v1.executor", Executor=SimpleNamespace(get_class=lambda config: "executor")),
        module("vllm.v1.sample", __path__=[]),
        module("vllm.v1.sample.logits_processor", AdapterLogitsProcessor=AdapterLogitsProcessor),
        module("vllm.model_executor", __path__=[]),
        module("vllm.model_executor.model_loader", register_model_loader=register_model_loader, __path__=[]),
        module("vllm.model_executor.model_loader.base_loader", BaseModelLoader=BaseModelLoader),
    ]
    return {part.__name__: part for part in parts}


def install(monkeypatch):
    """``import vllm`` finds this one."""
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    for name, part in modules().items():
        monkeypatch.setitem(sys.modules, name, part)
    built.clear()
