"""``unfuse serve`` as a process: killed in mid-stream, stopped by a signal, under load, and started wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch

from benchmarks import serve_load
from tests import forked
from tests.serving.conftest import TIMEOUT_S, Served, ServedProcess, about
from tests.serving.holding import AFTER, LONG
from tests.started import PATIENCE_S, wait_for
from unfuse import loading
from unfuse.cli import run
from unfuse.errors import as_ours
from unfuse.events import read_events, write_eventgpt_npy
from unfuse.feature_store import FeatureStore
from unfuse.serving.settings import ServeSettings
from unfuse.unavailable import Unavailable

ROOT = Path(__file__).parents[3]


def endless(client: openai.OpenAI, scene: str, tokens: int = 4000) -> Any:
    """A stream that is held in its middle."""
    return client.chat.completions.create(
        model="demo", messages=about(scene), max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
    )


def shortened(recording: Path, count: int) -> bytes:
    """A recording of its own: some events less."""
    stream = read_events(recording)
    path = recording.with_name(f"shortened-{count}.npy")
    write_eventgpt_npy(path, stream.slice(count, len(stream)))
    data = path.read_bytes()
    path.unlink()
    return data


def test_killed_during_a_stream(recording: Path, tmp_path: Path, demo_model: Any) -> None:
    """Clients get an error; the entries of the store are whole, and a new server finds them."""
    served = ServedProcess("--store", str(tmp_path / "store"))
    with recording.open("rb") as file:
        scene = served.openai.files.create(file=file, purpose="user_data").id
    uploads = [0]
    left = threading.Event()

    def upload_on() -> None:
        for count in range(1, 1000):
            try:
                served.openai.files.create(file=("r.npy", shortened(recording, count)), purpose="user_data")
                uploads[0] = count
            except openai.APIConnectionError:
                left.set()
                return

    other = threading.Thread(target=upload_on)
    other.start()
    stream = iter(endless(served.openai, scene))
    for _ in range(5):
        next(stream)
    wait_for(lambda: uploads[0] >= 3)
    served.process.kill()
    # Whichever of its layers the client has it from.
    with pytest.raises(Exception, match=r"(?i)clos|reset|incomplete|connection") as caught:
        list(stream)
    assert type(caught.value).__module__.split(".")[0] in ("openai", "httpx", "httpx2"), repr(caught.value)
    with pytest.raises(openai.APIConnectionError):
        served.openai.models.list()
    assert left.wait(PATIENCE_S)
    other.join()
    served.close()

    store = FeatureStore(tmp_path / "store")
    found = list(store.check())
    assert len(found) >= uploads[0] >= 3
    assert not [fault for _, fault in found if fault is not None]
    again = Served(demo_model, ServeSettings(port=0, max_new_tokens=8), store=store)
    try:
        scene_again = again.http.post("/v1/files", files={"file": ("r.npy", recording.read_bytes())}).json()
        assert scene_again["id"] == scene
        assert scene_again["unfuse"]["features"] == "store"
        assert scene_again["unfuse"]["stages"]["encode_ms"] == 0
        assert again.openai.chat.completions.create(model="demo", messages=about(scene)).choices[0].message.content
    finally:
        again.close()


def test_shutdown_finishes_started_answers(demo_model: Any, release: threading.Event) -> None:
    """The answer is held until the server has heard; only then it is written to its end."""
    served = Served(demo_model, ServeSettings(port=0, max_new_tokens=32, timeout_s=TIMEOUT_S))
    chunks = iter(endless(served.openai, "demo:0", tokens=LONG))
    next(chunks)
    served.server.should_exit = True
    wait_for(lambda: not _listens(served.port))
    release.set()
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason in ("stop", "length")
    assert len(rest) > AFTER
    served.close()
    assert served.failure is None


def test_a_stream_goes_on_after_sigterm() -> None:
    """sse-starlette would end it within half a second; the answer takes longer, or the test shows nothing."""
    served = ServedProcess()
    chunks = iter(endless(served.openai, "demo:0", tokens=LONG - 1))
    next(chunks)
    served.process.terminate()
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length"
    assert rest[-1].unfuse["stages"]["decode_ms"] > 0
    served.close()


def _listens(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE_S)
    except httpx.TransportError:
        return False
    return True


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_a_failing_engine_ends_the_server(
    demo_model: Any, monkeypatch: pytest.MonkeyPatch, kind: type[RuntimeError]
) -> None:
    """Its state is unknown: clients get an error, and a supervisor starts a new one."""
    from unfuse.engines.sequential import SequentialBatch

    served = Served(demo_model, ServeSettings(port=0, max_new_tokens=32))

    def broken(self: Any) -> Any:
        raise kind("the device is lost")

    monkeypatch.setattr(SequentialBatch, "step", broken)
    reply = served.http.post("/v1/chat/completions", json={"model": "demo", "messages": about("demo:0")})
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "engine_stopped"
    served.close()
    assert type(served.failure) is kind
    assert (as_ours(served.failure) is None) == (kind is RuntimeError), "no memory is one line"


@pytest.mark.usefixtures("release")
def test_a_full_queue_refuses_and_a_retry_is_served(demo_model: Any) -> None:
    settings = ServeSettings(port=0, max_new_tokens=8, max_concurrent=1, queue=0, timeout_s=TIMEOUT_S)
    served = Served(demo_model, settings)
    try:
        stream = endless(served.openai, "demo:0")
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            served.openai.chat.completions.create(model="demo", messages=about("demo:0"))
        assert caught.value.response.headers["retry-after"] == "1"
        stream.close()
        patient = served.openai.with_options(max_retries=int(PATIENCE_S))
        assert patient.chat.completions.create(model="demo", messages=about("demo:0")).choices
    finally:
        served.close()


@pytest.mark.usefixtures("release")
def test_a_request_beyond_its_time_limit_ends(demo_model: Any) -> None:
    """The time passes for the server alone, while an answer is held in its middle."""
    served = Served(demo_model, ServeSettings(port=0, timeout_s=TIMEOUT_S, max_new_tokens=8))
    try:
        messages = about("demo:0")
        served.openai.chat.completions.create(model="demo", messages=messages, max_tokens=1)
        stream = iter(endless(served.openai, "demo:0"))
        next(stream)
        served.passes(TIMEOUT_S)
        with pytest.raises(openai.APIError, match="longer than this server allows"):
            list(stream)
        wait_for(lambda: served.metric("unfuse_requests_running") == 0)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(
                served.openai.chat.completions.create, model="demo", messages=messages, max_tokens=4000,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            wait_for(lambda: served.metric("unfuse_requests_running") == 1)
            served.passes(TIMEOUT_S)
            with pytest.raises(openai.InternalServerError) as caught:
                whole.result(PATIENCE_S)
        assert caught.value.status_code == 504
        wait_for(lambda: served.metric("unfuse_requests_running") == 0)
        assert served.metric('unfuse_errors_total{code="timeout"}') == 2
    finally:
        served.close()


def test_under_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark's own run, short: no error, nothing left behind, memory that stays."""
    forked.fork_instead(monkeypatch, serve_load)
    code = serve_load.main(["--users", "8", "--seconds", "3", "--", "--timeout-s", "1800"])
    out = capsys.readouterr().out
    assert code == 0, out[-2000:]
    record = json.loads(out.splitlines()[-1])
    assert record["errors"] == 0
    assert record["times"]["whole answer"]["n"] >= 8
    assert record["times"]["whole answer"]["p99_s"] > 0
    assert record["left"] == {"unfuse_requests_running": 0, "unfuse_requests_waiting": 0}
    before, after = record["before"], record["after"]
    assert after["rss_mib"] < before["rss_mib"] + 60
    assert after["files"] <= before["files"] + 2
    assert after["threads"] <= before["threads"] + 4
    assert after["children"] <= 2


@pytest.fixture
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded before the arguments are checked")

    monkeypatch.setattr(loading.Placement, "load", load)


@pytest.mark.usefixtures("_nothing_is_loaded")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-model"], "expected a checkpoint folder"),
        (["--device", "gpu"], "expected auto, cpu"),
        (["--host", "0.0.0.0"], "no token"),
        (["--host", "0.0.0.0", "--token-file", "/nonexistent"], "readable file"),
        (["--port", "99999"], "0 to 65535"),
        (["--timeout-s", "0"], "above 0"),
        (["--store-gib", "3"], "no --store"),
        (["--store", "/proc/x"], "/proc/x"),
    ],
)
def test_a_wrong_start_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert words in captured.err


def test_an_unsplittable_model_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = SimpleNamespace(adapter=SimpleNamespace(unsplittable=Unavailable("no split point")))
    monkeypatch.setattr(loading.Placement, "load", lambda *_, **__: whole)
    assert run(["serve", "--port", "0"]) == 2
    assert "no split point" in capsys.readouterr().err


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert run(["serve"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unfuse serve: found no package fastapi, expected the package. Run: ")
    assert error.endswith('pip install "unfuse[serve]"\n')


def test_no_extra_is_needed_elsewhere() -> None:
    code = "import sys, unfuse.cli; assert not {'fastapi', 'uvicorn', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
