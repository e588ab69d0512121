"""EventGPT-7B's shape on one GPU: engine ``graphed`` beside Hugging Face's own ways and the device's floors.

All in one run, on random weights made on the device (timings only): 5 frames at 336, 636 positions, 46 new tokens.
Start-up comes first, in its own processes, then what is ours, then the baselines: one that fails says so in its cell.

    python benchmarks/stage4_table.py --out FOLDER       the table, and every raw value as JSON
    python benchmarks/stage4_table.py --quick-cpu        a tiny model on the CPU: only whether the script runs
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, StaticCache

try:
    import numba  # noqa: F401  # its absence is filled in before the package asks for it
except ImportError:
    # Images made for GPUs often lack it. The loops that it compiles, over events and pictures, do not run here.
    sys.modules["numba"] = types.ModuleType("numba")
    sys.modules["numba"].njit = lambda *of, **_: of[0] if of else lambda function: function  # type: ignore[attr-defined]

from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.adapters.eventgpt_loading import random_config
from unfuse.adapters.fused import generate_fused
from unfuse.engines.attention import reproducible_attention
from unfuse.engines.eager import EagerEngine
from unfuse.engines.language_model import LanguageModel
from unfuse.features import Features
from unfuse.measure.ceilings import measure_ceilings
from unfuse.measure.clock import paused_gc
from unfuse.measure.environment import environment, package_version
from unfuse.models.eventgpt import EventChatConfig, EventChatModel
from unfuse.models.eventgpt.prompt import EVENT_INDEX
from unfuse.staged_model import StagedModel, pick_engine
from unfuse.stages import Prepared, Prompt, Sampling

FRAMES, NEW_TOKENS, FEW, MANY = 5, 46, 2, 34
BEFORE, AFTER, ASKED = 35, 19, 24
"""Text before the scene, after it, and after it in a second question."""
GREEDY = Sampling(ignore_eos=True)
STATIC, GIB = "HF static cache + torch.compile", 2**30


@dataclass
class Bench:
    """What was found so far: medians in ms, and other numbers, by name."""

    repeats: int
    budget: float
    started: float = field(default_factory=time.perf_counter)
    raw_ms: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """Device, versions, ceilings."""
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.perf_counter() - self.started:6.1f} s  {text}", file=sys.stderr, flush=True)

    def timed(self, name: str, work: Callable[[], object], *, warmups: int = 3) -> None:
        """Times a call, synchronised before and after."""
        values = []
        with paused_gc():
            for turn in range(warmups + self.repeats):
                wait()
                start = time.perf_counter_ns()
                work()
                wait()
                if turn >= warmups:
                    values.append((time.perf_counter_ns() - start) / 1e6)
        self.raw_ms[name] = values
        self.step(name, name, steps=1)

    def step(self, name: str, many: str, few: str | None = None, *, steps: int) -> None:
        """The time of one of ``steps`` that ``many`` has and ``few`` has not; quartiles of paired values."""
        more, less = self.raw_ms[many], self.raw_ms[few] if few else [0.0] * len(self.raw_ms[many])
        self.found[name] = (median(more) - median(less)) / steps
        self.quartiles[name] = quantiles([(a - b) / steps for a, b in zip(more, less, strict=True)], method="inclusive")
        self.say(f"{name}: {self.found[name]:.3f} ms")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Runs a part of which others do not depend; where it fails, notes why and goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # one part must not cost the others
            reason = (str(error).strip() or "no message").splitlines()[0][:160].replace("|", "/")
            self.failed[name] = f"failed: {type(error).__name__}: {reason}"
            self.say(f"{name}: {self.failed[name]}")
        tidy()

    def require(self, seconds: float) -> None:
        """Refuses to begin what would not end in time."""
        if time.perf_counter() - self.started + seconds > self.budget:
            raise TimeoutError(f"not begun, its {seconds:.0f} s would end after {self.budget:.0f} s")

    def cell(self, name: str, unit: str = "ms", part: str = "") -> str:
        """A number as the table shows it, or why the part of the run that gives it did not."""
        if name not in self.found:
            return self.failed.get(part or name, "not measured")
        digits = 2 if unit in ("ms", "GiB") else 3
        return f"{self.found[name]:.{digits}{'f' if digits == 2 else 'g'}} {unit}".rstrip()


def wait() -> None:
    """For the device."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def tidy() -> None:
    """Gives back memory that nobody holds."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Case:
    """The model and what it is given: EventGPT-7B in bfloat16 on the GPU, or a tiny float32 model on the CPU."""

    smoke: bool
    adapter: EventGPTAdapter
    prepared: Prepared
    batches: tuple[int, int]
    compiler: dict[str, Any]

    @property
    def model(self) -> EventChatModel:
        """The Hugging Face model."""
        model: EventChatModel = self.adapter.model
        return model

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.prepared.text_tokens + self.prepared.media_tokens

    @property
    def position_bytes(self) -> int:
        """Keys and values of one position."""
        config = self.model.config
        size = 2 * config.num_key_value_heads * config.head_dim * self.adapter.dtype.itemsize
        return int(config.num_hidden_layers * size)


def make_case(smoke: bool) -> Case:
    """Makes the model where it runs, and noise for it to look at."""
    config = random_config()
    if smoke:
        tower = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2, image_size=28,
            patch_size=14,
        )  # fmt: skip
        config = EventChatConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, event_feature_adaptor=True, vision_config=tower,
        )  # fmt: skip
    device, dtype = (torch.device("cpu"), torch.float32) if smoke else (torch.device("cuda", 0), torch.bfloat16)
    with device:
        torch.manual_seed(0)
        built = EventChatModel._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]  # transformers' own
        model: EventChatModel = built.to(device).eval()
        side = model.config.vision_config.image_size
        pixels = torch.randn(FRAMES, 3, side, side).to(dtype)
    model.generation_config.eos_token_id = config.eos_token_id
    no_text = types.SimpleNamespace(decode=lambda *_, **__: "")
    adapter = EventGPTAdapter(model, no_text, None, fingerprint="random")
    compiler: dict[str, Any] = {"backend": "eager"} if smoke else {"mode": "reduce-overhead"}
    prepared = make_prepared(adapter, make_ids(0, AFTER, config.vocab_size), pixels)
    compiler |= {"fullgraph": True, "dynamic": False}
    return Case(smoke, adapter, prepared, (2, 3) if smoke else (16, 64), compiler)


def make_ids(seed: int, after: int, vocabulary: int) -> tuple[int, ...]:
    """A prompt's ids: the same before the scene, others from the first one after it on."""
    generator, most = torch.Generator(), vocabulary - 8
    head = torch.randint(5, most, (BEFORE,), generator=generator.manual_seed(10**6)).tolist()
    rest = torch.randint(5, most, (after - 1,), generator=generator.manual_seed(seed)).tolist()
    return (*head, EVENT_INDEX, 5 + seed, *rest)


def make_prepared(adapter: EventGPTAdapter, ids: tuple[int, ...], pixels: torch.Tensor) -> Prepared:
    """What ``preprocess`` gives, without text or pictures."""
    input_ids = torch.tensor([ids], device=adapter.device)
    return replace(adapter._prepared(input_ids, pixels, "0" * 64, "", FRAMES), token_ids=ids)


def staged(adapter: EventGPTAdapter, name: str) -> StagedModel:
    """The model under an engine; ``eager`` stands in for ``graphed`` in the smoke run only."""
    engine, notes, *_ = pick_engine(name, adapter)
    if engine.name != name and adapter.device.type == "cuda":
        raise SystemExit(f"engine {name} cannot be had: {'; '.join(notes)}")
    return StagedModel("random", adapter, engine, notes)


def start_up(smoke: bool) -> None:
    """In a process of its own: prints the seconds of the engine's construction and of the first answer."""
    case = make_case(smoke)
    wait()
    begun = time.perf_counter()
    model = staged(case.adapter, "graphed")
    made = time.perf_counter()
    model.decode(model.prefill(case.prepared, model.encode(case.prepared), GREEDY), NEW_TOKENS)
    print(json.dumps([made - begun, time.perf_counter() - made]))


def measure_start_up(bench: Bench, smoke: bool) -> None:
    """Twice with the same folders of what is compiled and tuned, which are empty at first."""
    command = [sys.executable, __file__, "--only", "startup", *(["--quick-cpu"] if smoke else [])]
    for name in ("cold start", "warm start"):
        with bench.attempt(name):
            bench.say(f"{name}, in a process of its own")
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
            made, answered = json.loads(done.stdout.splitlines()[-1])
            bench.found |= {name: made + answered, f"{name}: engine": made, f"{name}: first answer": answered}
            bench.say(f"{name}: {made:.1f} s and {answered:.1f} s")


def products(*modules: nn.Module) -> int:
    """Weights that a row is multiplied with."""
    parts = (part for module in modules for part in module.modules())
    return sum(part.weight.numel() for part in parts if isinstance(part, (nn.Linear, nn.Conv2d)))


def measure_floors(bench: Bench, case: Case) -> None:
    """The least time of each part: weights and cache read once, or all products made, whichever takes longer."""
    ceilings = measure_ceilings(case.adapter.device, case.adapter.dtype)
    assert ceilings is not None, "no memory for the ceilings"
    shown = f"{ceilings.bytes_per_s / 1e12:.2f} TB/s, {ceilings.flops_per_s / 1e12:.0f} TFLOP/s"
    bench.about = {**environment(case.adapter.device), "triton": package_version("triton"), "ceilings": shown}
    model, config, tower = case.model, case.model.config, case.model.config.vision_config
    network, head, patches, length = model.model, products(model.lm_head), model.num_patches, case.length
    decoder, width = products(network.layers), config.num_attention_heads * config.head_dim

    def floor(name: str, weights: int, flops: float, cache: float = 0) -> None:
        moved = weights * case.adapter.dtype.itemsize + cache
        bench.found[f"floor {name}"] = 1e3 * max(moved / ceilings.bytes_per_s, flops / ceilings.flops_per_s)

    for name, rows, tokens in (("decode", 1, NEW_TOKENS), *((f"batch {n}", n, FEW + MANY) for n in case.batches)):
        cache = rows * case.position_bytes * (length + tokens / 2)
        floor(name, decoder + head, 2 * rows * (decoder + head), cache)
    for name, rows in (("prefill", length), ("second", ASKED)):
        attention = 4 * config.num_hidden_layers * width * rows * (2 * length - rows + 1) / 2
        floor(name, decoder + head, 2 * rows * decoder + 2 * head + attention, length * case.position_bytes)
    every, pooled = products(network.visual_tower, network.visual_projector), products(network.feature_adaptor)
    attention = 4 * FRAMES * patches**2 * tower.hidden_size * tower.num_hidden_layers
    floor("encode", every + pooled, 2 * FRAMES * patches * every + 2 * (FRAMES + patches) * pooled + attention)
    parts = [bench.found[f"floor {name}"] for name in ("encode", "prefill", "decode")]
    bench.found["floor whole"] = parts[0] + parts[1] + (NEW_TOKENS - 1) * parts[2]


def measure_answers(bench: Bench, case: Case, model: StagedModel, features: Features, prompt: Prompt, of: str) -> None:
    """Stages 3 and 4 under an engine, whose name begins those of the times."""
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
        # Their token ids are there, as the target has it: what makes them is Stage 2.
        questions = [
            make_prepared(case.adapter, make_ids(seed, ASKED, vocabulary), none) for seed in range(1, bench.repeats + 4)
        ]
        model.prefill(case.prepared, features, GREEDY, reuse=True)

        def second() -> None:
            found = model.prefill(questions.pop(), features, GREEDY, reuse=True)
            assert found.prompt_tokens - found.reused_prefix_tokens == ASKED, "another part of the prompt was reused"

        bench.timed(f"{of} second", second)


def measure_ours(bench: Bench, case: Case, model: StagedModel, features: Features) -> None:
    """Whole answers, and several together."""

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
    """Tokens of both engines, and how far features and logits are from those of the same weights in float32."""
    written = {n: list(m.engine.decode(m.engine.prefill(prompt, GREEDY), NEW_TOKENS)) for n, m in models.items()}
    forced, other = written["eager"], written["graphed"]
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
    """``generate`` from features in place and from pixels, and the published loop over frames."""
    model, network = case.model, case.model.model
    mask = torch.ones(1, case.length, dtype=torch.long, device=case.adapter.device)
    inputs = {"inputs_embeds": prompt.inputs_embeds, "attention_mask": mask}

    def generate(tokens: int) -> None:
        generate_fused(model, inputs, 0, max_new_tokens=tokens, sampling=GREEDY, logits=False)

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
    """Compiled steps over a static cache, without a look at the tokens between them."""
    network, head, name = case.model.model, case.model.lm_head, f"static {rows}"
    # A whole number of 64 positions, which attention likes.
    cache: Any = StaticCache(config=case.model.config, max_cache_len=-(-(case.length + NEW_TOKENS) // 64) * 64)

    def step(**given: torch.Tensor) -> torch.Tensor:
        hidden = network(**given, past_key_values=cache, use_cache=True).last_hidden_state
        chosen: torch.Tensor = head(hidden[:, -1]).argmax(-1, keepdim=True)
        return chosen

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


def table(bench: Bench, case: Case) -> list[str]:
    """The table's lines, as far as they were measured."""
    lines = ["| what | ours | baselines | floor | target | met |", "|---|---|---|--:|--:|---|"]

    def row(what: str, name: str, limit: float | None, others: str, unit: str = "ms", part: str = "") -> None:
        spread = bench.quartiles.get(name)
        ours = bench.cell(name, unit, part) + (f" [{spread[0]:.2f}, {spread[2]:.2f}]" if spread else "")
        floor = f"floor {name.removeprefix('graphed ')}"
        bound = bench.cell(floor) if floor in bench.found else ""
        target = "unknown" if limit is None else f"<= {limit:.4g} {unit}".rstrip()
        unknown = case.smoke or limit is None or name not in bench.found
        met = "-" if unknown or limit is None else "yes" if bench.found[name] <= limit else "**no**"
        lines.append(f"| {what} | {ours} | {others} | {bound} | {target} | {met} |")

    def beside(unit: str = "ms", part: str = "", **names: str) -> str:
        return "; ".join(f"{k.replace('_', ' ')} {bench.cell(name, unit, part)}" for k, name in names.items())

    both = beside(HF_generate="HF decode", engine_eager="eager decode")
    row("decode, a token", "graphed decode", 3.5, f"{both}; {STATIC} {bench.cell('static 1')}")
    row("prefill, features in place to first token", "graphed prefill", 14, beside(HF_eager="eager prefill"))
    row(f"encode {FRAMES} frames", "graphed encode", 4.5, beside(one_by_one="one by one", batched="eager encode"))
    hf, whole = bench.found.get("HF whole"), bench.found.get("graphed whole")
    times = f", {hf / whole:.2f} times as long" if hf and whole else ""
    hf_cell = beside(HF_generate="HF whole") + times
    row("encode + prefill + decode, in a sixth of HF's time", "graphed whole", hf / 6 if hf else None, hf_cell)
    first = beside(first_question="graphed prefill", its_encode="graphed encode", engine_eager="eager second")
    row(f"second question, {ASKED} new ids to first token", "graphed second", 4.5, first)
    for rows, limit in zip(case.batches, (5.5, 10.0), strict=True):
        compiled = f"{STATIC} {bench.cell(f'static {rows}')}"
        row(f"decode step of {rows} rows", f"graphed batch {rows}", limit, compiled)
    for name, limit in (("cold start", 60), ("warm start", 15)):
        parts = beside("s", name, engine=f"{name}: engine", first_answer=f"{name}: first answer")
        row(f"{name}, engine and first answer", name, limit, parts, "s")
    others = beside("GiB", peak_allocated="peak allocated", at_rest="at rest")
    row("memory above weights and cache, peak reserved", "peak reserved", 2, others, "GiB")
    closed = beside("GiB", allocated="left allocated", reserved="left reserved")
    before = beside("GiB", allocated_before="before close")
    lines.append(f"| memory above weights after close() | {closed} | {before} | | | - |")
    errors = beside("", "truth", eager="eager logits, max", graphed="graphed logits, max")
    same, gap, error = (bench.found.get(name) for name in ("same tokens", "parted", "eager logits, max"))
    shown = bench.cell("same tokens", f"of {NEW_TOKENS}", "truth")
    shown += f", then two whose float32 logits are {gap:.2g} apart" if gap is not None else ""
    fine = same == NEW_TOKENS or (gap is not None and error is not None and gap <= 2 * error)
    met = "-" if case.smoke or same is None else "yes" if fine else "**no**"
    target = "all, or apart by no more than twice eager's error"
    lines.append(f"| greedy tokens, as eager's | {shown} | largest error of logits: {errors} | | {target} | {met} |")
    for what in ("logits", "features"):
        errors = beside("", "truth", graphed=f"graphed {what}", eager=f"eager {what}")
        row(f"{what}: relative L2 error against float32, over eager's", f"{what} ratio", 1, errors, "", "truth")
    return lines


def report(bench: Bench, case: Case, out: Path | None) -> str:
    """The table and what it was measured on; with every raw value also in files."""
    about, smoke = bench.about, "**Smoke run on CPU, no measurement: a tiny model, engine eager as graphed.**\n"
    driver = ((about["cuda"] or {}).get("state") or {}).get("driver_version")
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", "transformers"))
    lines = [
        *([smoke] if case.smoke else []),
        *table(bench, case),
        "",
        f"- {about['device_name']}, driver {driver}, {versions}, triton {about['triton']}, {about['cpu_cores']} cores",
        f"- ceilings measured in this run: {about['ceilings']}; floors are bytes and products over them",
        f"- medians of {bench.repeats} [quartiles]; prompt of {case.length}, {NEW_TOKENS} new tokens; random weights",
        *(f"- {note}" for note in bench.notes),
    ]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        whole = vars(bench) | {"seconds": time.perf_counter() - bench.started, "smoke": case.smoke}
        (out / "table.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return "\n".join(lines)


@torch.no_grad()
def measure(bench: Bench, smoke: bool, out: Path | None) -> str:
    """Everything, in an order in which nothing disturbs what comes after it."""
    measure_start_up(bench, smoke)
    case = make_case(smoke)
    measure_floors(bench, case)
    bench.say(f"{bench.about['ceilings']}; next: engine graphed, with what the start-up left on disk")
    tidy()
    if not smoke:
        torch.cuda.reset_peak_memory_stats()
    weights = sum(tensor.nbytes for tensor in (*case.model.parameters(), *case.model.buffers()))

    def above(cache: int = 0, **kinds: str) -> None:
        """GiB that the allocator says, above the weights and a cache."""
        if not smoke:
            held = {name: getattr(torch.cuda, kind)() for name, kind in kinds.items()}
            bench.found.update({name.replace("_", " "): (n - weights - cache) / GIB for name, n in held.items()})

    models = {name: staged(case.adapter, name) for name in ("graphed", "eager")}
    graphed, eager = models["graphed"], models["eager"]
    features = graphed.encode(case.prepared)
    prompt = case.adapter.prompt(case.prepared, features, digest=False)
    list(graphed.engine.decode(graphed.engine.prefill(prompt, GREEDY), NEW_TOKENS))
    needed = case.position_bytes * (case.length + NEW_TOKENS)
    above(needed, peak_reserved="max_memory_reserved", peak_allocated="max_memory_allocated")
    gc.collect()
    above(at_rest="memory_allocated")

    measure_answers(bench, case, graphed, features, prompt, "graphed")
    measure_ours(bench, case, graphed, features)
    report(bench, case, out)
    with bench.attempt("truth"):
        bench.require(seconds=30)
        measure_truth(bench, case, models, prompt)
    bench.notes += [note for note in graphed.notes if note not in case.adapter.notes]
    above(before_close="memory_allocated")
    graphed.close()
    tidy()
    above(left_allocated="memory_allocated", left_reserved="memory_reserved")
    report(bench, case, out)

    measure_answers(bench, case, eager, features, prompt, "eager")
    measure_hugging_face(bench, case, prompt)
    eager.close()
    for rows in (1, *case.batches):
        report(bench, case, out)
        measure_static(bench, case, prompt, rows)
    return report(bench, case, out)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--repeats", type=int, default=10, help="of each measurement, after warm-ups")
    parser.add_argument("--budget", type=float, default=480, help="seconds; a part that would go beyond is not begun")
    parser.add_argument("--quick-cpu", action="store_true", help="smoke run of a tiny model")
    parser.add_argument("--only", choices=["startup"], help="one start of the engine (the script's own child process)")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("--repeats: at least 2")
    if arguments.only:
        with torch.no_grad():
            start_up(arguments.quick_cpu)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Read when an engine is made, here and in the child processes.
        os.environ |= {"UNFUSE_CACHE": f"{folder}/unfuse", "TRITON_CACHE_DIR": f"{folder}/triton"}
        print(measure(Bench(arguments.repeats, arguments.budget), arguments.quick_cpu, arguments.out))


if __name__ == "__main__":
    main()
