"""Measure each part of the table."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import StaticCache

from benchmarks.stage4.case import (
    FEW,
    FRAMES,
    GREEDY,
    MANY,
    NEW_TOKENS,
    QUESTION_IDS,
    Case,
    make_case,
    make_ids,
    make_prepared,
    staged,
)
from benchmarks.stage4.record import Bench, wait_for_device
from unfuse.adapters.fused_generate import FusedSettings, generate_fused
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.eager import EagerEngine
from unfuse.engines.language_model import LanguageModel
from unfuse.features import Features
from unfuse.measure.ceilings import measure_ceilings
from unfuse.measure.environment import environment, package_version
from unfuse.staged_model import StagedModel
from unfuse.stages import Prompt


def start_up(smoke: bool) -> None:
    """Print the seconds of the engine's construction and of the first answer; runs in a separate process."""
    case = make_case(smoke)
    wait_for_device()
    started = time.perf_counter()
    model = staged(case.adapter, "graphed")
    built = time.perf_counter()
    model.decode(model.prefill(case.prepared, model.encode(case.prepared), GREEDY), NEW_TOKENS)
    print(json.dumps([built - started, time.perf_counter() - built]))


def measure_start_up(bench: Bench, smoke: bool) -> None:
    """Start twice with the same folders of compiled and tuned kernels; the folders are empty at first."""
    command = [sys.executable, "-m", __package__, "--only", "startup", *(["--quick-cpu"] if smoke else [])]
    for name in ("cold start", "warm start"):
        with bench.attempt(name):
            bench.log(f"{name}, in a separate process")
            done = subprocess.run(command, cwd=Path.cwd(), capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
            build, answer = json.loads(done.stdout.splitlines()[-1])
            bench.found |= {name: build + answer, f"{name}: engine": build, f"{name}: first answer": answer}
            bench.log(f"{name}: {build:.1f} s and {answer:.1f} s")


def multiplied_weights(*modules: nn.Module) -> int:
    """Count the weights that multiply one row."""
    parts = (part for module in modules for part in module.modules())
    return sum(part.weight.numel() for part in parts if isinstance(part, (nn.Linear, nn.Conv2d)))


def measure_floors(bench: Bench, case: Case) -> None:
    """Record the least time of each part: all bytes read once or all products computed, whichever takes longer."""
    ceilings = measure_ceilings(case.adapter.device, case.adapter.dtype)
    assert ceilings is not None, "no memory for the ceilings"
    ceilings_text = f"{ceilings.bytes_per_s / 1e12:.2f} TB/s, {ceilings.flops_per_s / 1e12:.0f} TFLOP/s"
    bench.about = {**environment(case.adapter.device), "triton": package_version("triton"), "ceilings": ceilings_text}
    model, config, tower = case.model, case.model.config, case.model.config.vision_config
    network, head, patches, length = model.model, multiplied_weights(model.lm_head), model.num_patches, case.length
    decoder, width = multiplied_weights(network.layers), config.num_attention_heads * config.head_dim

    def floor(name: str, weights: int, flops: float, cache: float = 0) -> None:
        moved = weights * case.adapter.dtype.itemsize + cache
        bench.found[f"floor {name}"] = 1e3 * max(moved / ceilings.bytes_per_s, flops / ceilings.flops_per_s)

    for name, rows, tokens in (("decode", 1, NEW_TOKENS), *((f"batch {n}", n, FEW + MANY) for n in case.batches)):
        cache = rows * case.position_bytes * (length + tokens / 2)
        floor(name, decoder + head, 2 * rows * (decoder + head), cache)
    for name, rows in (("prefill", length), ("second", QUESTION_IDS)):
        attention = 4 * config.num_hidden_layers * width * rows * (2 * length - rows + 1) / 2
        floor(name, decoder + head, 2 * rows * decoder + 2 * head + attention, length * case.position_bytes)
    every, pooled = (
        multiplied_weights(network.visual_tower, network.visual_projector),
        multiplied_weights(network.feature_adaptor),
    )
    attention = 4 * FRAMES * patches**2 * tower.hidden_size * tower.num_hidden_layers
    floor("encode", every + pooled, 2 * FRAMES * patches * every + 2 * (FRAMES + patches) * pooled + attention)
    parts = [bench.found[f"floor {name}"] for name in ("encode", "prefill", "decode")]
    bench.found["floor whole"] = parts[0] + parts[1] + (NEW_TOKENS - 1) * parts[2]


def measure_answers(bench: Bench, case: Case, model: StagedModel, features: Features, prompt: Prompt, of: str) -> None:
    """Measure Stages 3 and 4 under the engine ``of``; its name prefixes the names of the times."""
    with bench.attempt(f"{of} encode"):
        bench.timed(f"{of} encode", lambda: model.encode(case.prepared))
    with bench.attempt(f"{of} prefill"):
        bench.timed(f"{of} prefill", lambda: model.engine.prefill(prompt, GREEDY))
    with bench.attempt(f"{of} decode"):
        first = model.engine.prefill(prompt, GREEDY)
        bench.timed(f"{of} decode, all", lambda: list(model.engine.decode(first, NEW_TOKENS)))
        bench.step(f"{of} decode", f"{of} decode, all", steps=NEW_TOKENS - 1)
    with bench.attempt(f"{of} second"):
        vocabulary, none = case.model.config.vocab_size, case.prepared.pixel_values[:0]
        # Token ids are ready, as the target assumes: Stage 2 makes them.
        questions = [
            make_prepared(case.adapter, make_ids(seed, QUESTION_IDS, vocabulary), none)
            for seed in range(1, bench.repeats + 4)
        ]
        model.prefill(case.prepared, features, GREEDY, reuse=True)

        def second() -> None:
            found = model.prefill(questions.pop(), features, GREEDY, reuse=True)
            assert found.prompt_tokens - found.reused_prefix_tokens == QUESTION_IDS, (
                "another part of the prompt was reused"
            )

        bench.timed(f"{of} second", second)


def measure_graphed(bench: Bench, case: Case, model: StagedModel, features: Features) -> None:
    """Measure whole answers, and batches."""

    def whole() -> None:
        encoded = model.encode(case.prepared)
        model.decode(model.prefill(case.prepared, encoded, GREEDY), NEW_TOKENS)

    with bench.attempt("graphed whole"):
        bench.timed("graphed whole", whole)
    for rows in case.batches:
        with bench.attempt(f"graphed batch {rows}"):
            prompt = case.adapter.prompt_batch([(case.prepared, features)] * rows)
            few, many = (f"graphed batch {rows}, {tokens} tokens" for tokens in (FEW, MANY))
            for name, tokens in ((few, FEW), (many, MANY)):
                bench.timed(name, functools.partial(model.engine.answer_batch, prompt, GREEDY, tokens), warmups=2)
            bench.step(f"graphed batch {rows}", many, few, steps=MANY - FEW)


def measure_truth(bench: Bench, case: Case, models: dict[str, StagedModel], prompt: Prompt) -> None:
    """Compare the tokens of both engines, and the errors of features and logits against float32."""
    tokens = {n: list(m.engine.decode(m.engine.prefill(prompt, GREEDY), NEW_TOKENS)) for n, m in models.items()}
    forced, other = tokens["eager"], tokens["graphed"]
    same = next((i for i, (a, b) in enumerate(zip(forced, other, strict=True)) if a != b), NEW_TOKENS)
    bench.found["same tokens"] = same
    scores = {n: m.engine.score(m.engine.prefill(prompt, GREEDY), forced) for n, m in models.items()}
    exact: Any = copy.deepcopy(case.model)
    exact.float()
    network = exact.model
    vision = network.finish_features(network.visual_projector(network.visual_tower(case.prepared.pixel_values.float())))
    engine = EagerEngine(LanguageModel(network, exact.lm_head, exact.get_input_embeddings(), case.adapter.end_ids))
    truth = engine.score(engine.prefill(Prompt(inputs_embeds=prompt.inputs_embeds.float()), GREEDY), forced)
    for name, model in models.items():
        encoded = model.encode(case.prepared).tensor.float()
        for what, mine, true in (("logits", scores[name], truth), ("features", encoded, vision)):
            bench.found[f"{name} {what}"] = float((mine - true).norm() / true.norm())
            bench.found[f"{name} {what}, max"] = float((mine - true).abs().max())
    for what in ("logits", "features"):
        theirs = bench.found[f"eager {what}"]
        bench.found[f"{what} ratio"] = round(bench.found[f"graphed {what}"] / theirs, 2) if theirs else 1.0
    if same < NEW_TOKENS:
        bench.found["parted"] = float((truth[same, forced[same]] - truth[same, other[same]]).abs())


def measure_hugging_face(bench: Bench, case: Case, prompt: Prompt) -> None:
    """Measure ``generate`` from features and from pixels, and the published loop over frames."""
    model, network = case.model, case.model.model
    mask = torch.ones(1, case.length, dtype=torch.long, device=case.adapter.device)
    inputs = {"inputs_embeds": prompt.inputs_embeds, "attention_mask": mask}

    def generate(tokens: int) -> None:
        generate_fused(model, inputs, 0, FusedSettings(max_new_tokens=tokens, sampling=GREEDY))

    def one_by_one() -> torch.Tensor:
        tower, projector, adaptor = network.visual_tower, network.visual_projector, network.feature_adaptor
        adapted = torch.cat([adaptor(projector(tower(frame[None]))) for frame in case.prepared.pixel_values])
        return torch.cat([adapted.mean(dim=1), adapted.mean(dim=0)])

    with bench.attempt("HF decode"):
        bench.timed("HF generate, 1 token", lambda: generate(1), warmups=2)
        bench.timed("HF generate, all", lambda: generate(NEW_TOKENS), warmups=1)
        bench.step("HF decode", "HF generate, all", "HF generate, 1 token", steps=NEW_TOKENS - 1)
    with bench.attempt("HF whole"):
        settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "sampling": GREEDY}
        bench.timed("HF whole", lambda: case.adapter.fused_generate([case.prepared], **settings), warmups=1)
    with bench.attempt("one by one"), reproducible_attention():
        bench.timed("one by one", one_by_one)


def measure_static(bench: Bench, case: Case, prompt: Prompt, rows: int) -> None:
    """Measure compiled steps over a static cache, without reading tokens between them."""
    network, head, name = case.model.model, case.model.lm_head, f"static {rows}"
    # A multiple of 64 positions, for which attention kernels are fast.
    cache: Any = StaticCache(config=case.model.config, max_cache_len=-(-(case.length + NEW_TOKENS) // 64) * 64)

    def step(**given: torch.Tensor) -> torch.Tensor:
        hidden = network(**given, past_key_values=cache, use_cache=True).last_hidden_state
        token: torch.Tensor = head(hidden[:, -1]).argmax(-1, keepdim=True)
        return token

    with bench.attempt(name):
        bench.require(seconds=45)
        first = step(inputs_embeds=prompt.inputs_embeds.expand(rows, -1, -1))
        compiled = torch.compile(step, **case.compiler)

        def answer() -> None:
            for layer in cache.layers:
                layer.cumulative_length.fill_(case.length)
            token = first
            for _ in range(NEW_TOKENS - 1):
                torch.compiler.cudagraph_mark_step_begin()
                token = compiled(input_ids=token).clone()

        bench.timed(f"{name}, all", answer)
        bench.step(name, f"{name}, all", steps=NEW_TOKENS - 1)
    torch.compiler.reset()
