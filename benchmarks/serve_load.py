"""Load `unfuse serve` with its real client: many users of the `openai` package, each with a different scene.

    python -m benchmarks.serve_load [--users 32] [--seconds 60] [--questions 4] [--model M] [-- options of unfuse serve]

The script starts a server on a free port. Every user uploads a recording, asks about it, with streamed and whole
answers in turn, and starts over. Every recording is the demo's without a few events, so that no two users share one.
The server caches few scenes (`--scenes-mb 16`), so that a first, shorter load, which is not counted, fills the cache.
Memory, open files, threads and child processes are read after this load and again at the end; growth between both is a
leak. Every error of a request counts; nothing is retried. The last line is JSON. Exit code 1 on any error.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai

from unfuse.events import read_events
from unfuse.samples.demo import demo_dataset

QUESTIONS = ("What moves?", "How many objects are there?", "Does the camera move?", "Which way do they go?")
_READY_S = 180.0
_BUSY = {stage: f'unfuse_engine_busy_seconds_total{{stage="{stage}"}}' for stage in ("prefill", "decode")}


@dataclass
class LoadResult:
    """Times and errors of the users' requests."""

    ttft_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    upload_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    reused: int = 0


@dataclass(frozen=True)
class ProcessResources:
    """Resources of the server's process."""

    rss_mib: float
    files: int
    threads: int
    children: int


@dataclass(frozen=True)
class Measurement:
    """One load, with the server before and after it."""

    result: LoadResult
    seconds: float
    before: ProcessResources
    after: ProcessResources
    busy: dict[str, float]
    """Share of the time that the engine spent in each stage."""
    metrics: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="about each upload")
    parser.add_argument("--model", default="demo")
    parser.add_argument("options", nargs="*", help="of unfuse serve, after --")
    given = parser.parse_args(arguments)
    with Server(given.model, given.options) as server:
        recordings = Recordings()
        warm = min(given.seconds / 3, 10.0)
        asyncio.run(_load(server, recordings, LoadResult(), given.users, warm, given.questions))
        before, idle = server.resources(), server.metrics()
        result = LoadResult()
        started = time.perf_counter()
        asyncio.run(_load(server, recordings, result, given.users, given.seconds, given.questions))
        seconds = time.perf_counter() - started
        after = server.resources()
        metrics = server.metrics()
    busy = {stage: (metrics[name] - idle[name]) / seconds for stage, name in _BUSY.items()}
    return _report(given.users, Measurement(result, seconds, before, after, busy, metrics))


class Server:
    """`unfuse serve` in a separate process."""

    def __init__(self, model: str, options: Sequence[str]):
        command = [sys.executable, "-m", "unfuse", "serve", model, "--port", "0", "--scenes-mb", "16", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = ""
        for line in self.process.stdout:
            print(line, end="")
            if line.startswith("Serving at "):
                self.url = line.split()[2]
                break
        deadline = time.monotonic() + _READY_S
        while not self._ready():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit("the server did not become ready")
            time.sleep(0.1)

    def resources(self) -> ProcessResources:
        """Return memory, open files, threads and child processes of the idle server."""
        time.sleep(1.0)
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        lists = [(task / "children").read_text().split() for task in (folder / "task").iterdir()]
        return ProcessResources(
            rss_mib=int(status["VmRSS"].split()[0]) / 1024,
            files=sum(1 for _ in (folder / "fd").iterdir()),
            threads=int(status["Threads"]),
            children=sum(map(len, lists)),
        )

    def metrics(self) -> dict[str, float]:
        """Return the server's metrics by name and labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return {
            name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        }

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False


class Recordings:
    """Recordings that all differ."""

    def __init__(self) -> None:
        self._stream = read_events(demo_dataset(max_samples=1).samples[0].files[0])
        self._count = 0

    def next(self) -> bytes:
        """Return the next recording as a file."""
        self._count += 1
        stream = self._stream
        file = io.BytesIO()
        columns = {name: np.asarray(getattr(stream, name))[self._count :] for name in "xytp"}
        np.save(file, np.array(columns, dtype=object), allow_pickle=True)
        return file.getvalue()


async def _load(
    server: Server, recordings: Recordings, result: LoadResult, users: int, seconds: float, questions: int
) -> None:
    stop = time.monotonic() + seconds
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:  # fmt: skip
        await asyncio.gather(*(_user(client, i, recordings, result, stop, questions) for i in range(users)))


async def _user(
    client: openai.AsyncOpenAI, number: int, recordings: Recordings, result: LoadResult, stop: float, questions: int
) -> None:
    model = (await client.models.list()).data[0].id
    while True:  # at least once, on a slow machine too
        try:
            started = time.perf_counter()
            scene = await client.files.create(file=("recording.npy", recordings.next()), purpose="user_data")
            result.upload_s.append(time.perf_counter() - started)
            for turn in range(questions):
                question = QUESTIONS[(number + turn) % len(QUESTIONS)]
                await _ask(client, model, scene.id, question, result, stream=turn % 2 == 0)
                if time.monotonic() > stop:
                    break
        except Exception as error:  # noqa: BLE001  # every error is counted and fails the run
            result.errors[f"{type(error).__name__}: {error}"[:200]] += 1
        if time.monotonic() > stop:
            return


async def _ask(
    client: openai.AsyncOpenAI, model: str, scene: str, question: str, result: LoadResult, *, stream: bool
) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "file", "file": {"file_id": scene}}, {"type": "text", "text": question}]}
    ]
    started = time.perf_counter()
    if stream:
        usage, text = None, ""
        options: Any = {"include_usage": True}
        async for chunk in await client.chat.completions.create(
            model=model, messages=messages, stream=True, stream_options=options
        ):
            if chunk.choices and chunk.choices[0].delta.role:
                result.ttft_s.append(time.perf_counter() - started)
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            usage = chunk.usage or usage
    else:
        reply = await client.chat.completions.create(model=model, messages=messages)
        usage, text = reply.usage, reply.choices[0].message.content or ""
    result.total_s.append(time.perf_counter() - started)
    if not text or usage is None:
        result.errors["an answer without text or usage"] += 1
        return
    result.tokens += usage.completion_tokens
    details = usage.prompt_tokens_details
    result.reused += (details.cached_tokens or 0) if details else 0


def _report(users: int, measured: Measurement) -> int:
    """Print the measurement; return the exit code."""
    result, seconds, before, after = measured.result, measured.seconds, measured.before, measured.after
    errors = sum(result.errors.values())
    requests = len(result.total_s) + len(result.upload_s)
    print(f"{users} users, {seconds:.1f} s: {requests} requests, {errors} errors")
    for error, count in result.errors.most_common(10):
        print(f"  {count} x {error}")
    rows = {"time to first token": result.ttft_s, "whole answer": result.total_s, "upload": result.upload_s}
    summary = {}
    for name, values in rows.items():
        if values:
            p50, p99 = np.percentile(values, (50, 99))
            summary[name] = {"n": len(values), "p50_s": float(p50), "p99_s": float(p99), "max_s": max(values)}
            print(f"{name:20} p50 {p50:7.3f} s   p99 {p99:7.3f} s   max {max(values):7.3f} s   of {len(values)}")
    print(f"answers {len(result.total_s) / seconds:.1f} a second, tokens {result.tokens / seconds:.0f} a second")
    print(f"engine busy with prefill {measured.busy['prefill']:.0%}, decode {measured.busy['decode']:.0%} of the time")
    for name in ("rss_mib", "files", "threads", "children"):
        print(f"{name:20} {getattr(before, name):8.0f} before, {getattr(after, name):8.0f} after")
    left = {name: measured.metrics[name] for name in ("unfuse_requests_running", "unfuse_requests_waiting")}
    print(f"left running {left['unfuse_requests_running']:.0f}, waiting {left['unfuse_requests_waiting']:.0f}")
    record = {
        "users": users, "seconds": seconds, "requests": requests, "errors": errors, "tokens": result.tokens,
        "reused_prompt_tokens": result.reused, "times": summary, "before": asdict(before), "after": asdict(after),
        "left": left, "engine_busy": measured.busy,
    }  # fmt: skip
    print(json.dumps(record))
    return 1 if errors or not result.total_s else 0


if __name__ == "__main__":
    sys.exit(main())
