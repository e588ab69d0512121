"""Runs as a page shows them, made of records with noise like a real machine's, and a browser to open it in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browsers import chromium, new_context
from unfuse.records import STAGES, Manifest, Noise, Probes, SampleRecord, StageMemory, StageTime
from unfuse.records.frames import FrameStore
from unfuse.records.work_records import Ceilings, StageWork
from unfuse.report.html import report_html
from unfuse.report.reading import ReportRun, run_of

MODELS = ("checkpoints/EventGPT-7b", "llava-hf/llava-1.5-7b-hf", "LanguageBind/Video-LLaVA-7B-hf", "demo")
MEDIANS_MS = {"load": 6.0, "preprocess": 30.0, "encode": 9.0, "prefill": 24.0}
TOKEN_MS, FIXED_MS = 4.0, 2.0


def make_records(
    model: int, count: int, *, device: bool = True, length: int | None = None, protocol: str = "decoupled"
) -> list[SampleRecord]:
    """Samples with a decode of 2 ms and 4 ms a token, everything under 3 % noise with a tail."""
    rng = np.random.default_rng(model)
    tokens = rng.integers(10, 90, count) if length is None else np.full(count, length)
    records = []
    for i, n in enumerate(tokens.tolist()):
        base = {**MEDIANS_MS, "decode": TOKEN_MS * (n - 1) + FIXED_MS}
        noisy = {name: ms * (1 + model / 10) * float(rng.lognormal(0, 0.03)) for name, ms in base.items()}
        if protocol == "fused":
            noisy = {k: noisy[k] for k in ("load", "preprocess")} | {"fused_generate": sum(list(noisy.values())[2:])}
        stages = {
            name: StageTime(host_ms=ms, device_ms=0.97 * ms if device and name not in ("load", "preprocess") else None)
            for name, ms in noisy.items()
        }
        total = sum(noisy.values())
        records.append(
            SampleRecord(
                sample_id=f"interlaken/{i:06d}",
                status="ok",
                stages=stages,
                staged_host_ms=total * 1.0002,
                e2e_host_ms=total * float(rng.normal(1, 0.004)),
                question="What are the key elements in this scene?" if i % 2 else "Which way does the car move?",
                media="video" if model == 2 else "event_data",
                media_sha256=media_hash(model, i),
                num_events=250_000,
                num_frames=8 if model == 2 else 5,
                text_tokens=47,
                media_tokens=582,
                frame_size=(480, 640),
                pixels=(5, 3, 336, 336),
                output_tokens=n,
                reused_prefix_tokens=0,
                token_ids=tuple(range(n)),
                text=f"Sample {i}: a street with parked cars, a cyclist and trees; something moves to the left. " * 3,
                stop_reason="eos",
                e2e_same_tokens=True,
            )
        )
    return records


def media_hash(model: int, index: int) -> str:
    """Models of events share media, the model of video has its own."""
    return f"{int(model == 2):032x}{index:032x}"


def make_manifest(
    model: int, count: int, protocol: str = "decoupled", about: dict[str, Any] | None = None, **changes: Any
) -> Manifest:
    fields: dict[str, Any] = {
        "run_id": f"r{model}",
        "created": "2026-11-20T08:00:00+00:00",
        "command": ("unfuse", "bench", MODELS[model % len(MODELS)], "--dataset", "D"),
        "protocol": protocol,
        "config": {"max_new_tokens": 512, "output_length": None, "seed": 0},
        "model": {
            "name": MODELS[model % len(MODELS)],
            "fingerprint": f"{model:064x}",
            "device": "cuda:0",
            "dtype": "bfloat16",
            "engine": "graphed",
            "notes": [],
            **(about or {}),
        },
        "dataset": {"path": "sets/my_egpt_dsec_seq_1s", "sha256": "d" * 64, "num_samples": count},
        "environment": {"code_version": {"unfuse": "0.1.0"}, "device_name": "NVIDIA H200", "cpu_governor": None},
        "clock": {"resolution_ns": 60, "edge_cost_ms": 0.02},
    }
    return Manifest(**{**fields, **changes})


def make_probes() -> Probes:
    """Noise, memory, work and ceilings of a 7B model on an H200."""
    repeats = tuple(300.0 + i for i in range(8))
    gib = 2**30
    return Probes(
        noise=Noise(sample_id="interlaken/000000", total_host_ms=repeats, e2e_host_ms=repeats),
        memory={
            name: StageMemory(peak_bytes=14 * gib + i * 10**8, resident_bytes=14 * gib) for i, name in enumerate(STAGES)
        },
        memory_source="CUDA allocator",
        encoder_calls_after_encode=0,
        work={
            "encode": StageWork(flops=2 * 10**12, least_bytes=10**9),
            "prefill": StageWork(flops=8 * 10**12, least_bytes=14 * 10**9),
            "decode": StageWork(flops=6 * 10**11, least_bytes=600 * 10**9),
        },
        work_sample_id="interlaken/000000",
        ceilings=Ceilings(bytes_per_s=4.4e12, flops_per_s=7.7e14),
    )


def make_run(model: int = 0, count: int = 20, *, protocol: str = "decoupled", **changes: Any) -> ReportRun:
    records = changes.pop("records", None) or make_records(model, count, protocol=protocol)
    probes = changes.pop("probes", None) or make_probes()
    return run_of(make_manifest(model, count, protocol, **changes), records, probes)


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """Strips of 200 samples in both kinds: some drawn, with as many dots as events leave; the others copies of them."""
    store = FrameStore(tmp_path_factory.mktemp("run") / "frames")
    rng = np.random.default_rng(0)
    for model, count in ((0, 5), (2, 8)):
        for index in range(200):
            if index < 4:
                strip = []
                for _ in range(count):
                    frame = np.full((480, 640, 3), 255, np.uint8)
                    y, x = rng.integers(0, 480, 30_000), rng.normal(320, 120, 30_000).clip(0, 639).astype(int)
                    frame[y, x] = np.where(rng.random(30_000)[:, None] < 0.5, (0, 0, 255), (255, 0, 0))
                    strip.append(frame)
                store.write(media_hash(model, index), strip)
            else:
                source = store.path / f"{media_hash(model, index % 4)}.webp"
                (store.path / f"{media_hash(model, index)}.webp").write_bytes(source.read_bytes())
    return store


def page_of(path: Path, runs: Sequence[ReportRun], **options: Any) -> Path:
    path.write_text(report_html(runs, **options), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


class Opened:
    """A page with its console messages and requests."""

    def __init__(self, page: Page, path: Path):
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.messages.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-charts]", state="attached")

    @property
    def fetched(self) -> list[str]:
        """Requests except for the file itself and its embedded data."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    contexts: list[BrowserContext] = []

    def opened(path: Path, *, width: int = 1200, **options: Any) -> Opened:
        context = new_context(browser, viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        return Opened(context.new_page(), path)

    yield opened
    for context in contexts:
        context.close()
