"""A server on the demo model, in a thread of this process or in one of its own, and its clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests import forked
from tests.serving.holding import holding
from tests.started import PATIENCE_S, wait_for
from unfuse.engines.sequential import SequentialBatch
from unfuse.samples.demo.folder import FIRST_SEED, demo_rows, write_media
from unfuse.serving import guard
from unfuse.serving.server import bind, serve, url_of
from unfuse.serving.settings import ServeSettings

OPENING_S = 1000.0
"""Time limit of a client of ``served`` for a head, and for each gap: time passes only by ``Served.passes``."""
TIMEOUT_S = 5000.0
"""Time limit of a request to ``served``."""


class Served:
    """A server that runs."""

    def __init__(self, model: Any, settings: ServeSettings, store: Any = None):
        listening = bind(settings)
        self.url = url_of(listening)
        self.port: int = listening.getsockname()[1]
        self.token = settings.token
        self.failure: BaseException | None = None
        parts: list[Any] = []

        def run() -> None:
            try:
                serve(listening, model, settings, store=store, started=lambda *started: parts.extend(started))
            except BaseException as error:  # noqa: BLE001  # for the test to look at
                self.failure = error

        self._thread = threading.Thread(target=run)
        self._thread.start()
        wait_until_ready(self.url)
        self.server, self.service = parts
        self._passed_s = 0.0
        self._loop = self.service.engine._loop
        real_s = self._loop.time
        self._loop.time = lambda: real_s() + self._passed_s
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        # A connection that is kept could be closed by the server just as it is used again.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S, limits=limits)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.token or "none", max_retries=0, timeout=PATIENCE_S
        )

    def close(self) -> None:
        """As SIGTERM would."""
        self.http.close()
        self.openai.close()
        self.server.should_exit = True
        self._thread.join(timeout=PATIENCE_S)
        assert not self._thread.is_alive()

    def passes(self, seconds: float) -> None:
        """Let time pass for the server's own limits, and for nobody else."""
        self._passed_s += seconds
        self._loop.call_soon_threadsafe(lambda: None)

    def holds(self, raw: socket.socket) -> bool:
        """Whether the server has this client's connection and is not closing it."""
        port = raw.getsockname()[1]
        connections = list(self.server.server_state.connections)
        return any(c.client and c.client[1] == port and not c.transport.is_closing() for c in connections)

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def metric(self, name: str) -> float:
        """A sample of ``/metrics`` by its whole name, 0 if there is none."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


class ServedProcess:
    """``unfuse serve`` itself; an answer of ``holding.LONG`` tokens is held for ever."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None):
        command = [sys.executable, "-m", "tests.serving.holding", "serve", "demo", "--device", "cpu", "--port", "0"]
        self.process = forked.Popen(
            [*command, "--timeout-s", f"{TIMEOUT_S:g}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})},
        )
        assert self.process.stdout is not None
        line = ""
        for line in self.process.stdout:
            if line.startswith("Serving at "):
                break
        else:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        self.url = line.split()[2]
        wait_until_ready(self.url)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def kill(self) -> None:
        """At once."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> int:
        """In good order, if it still runs; the exit code."""
        self.openai.close()
        self.process.terminate()
        code = self.process.wait(timeout=PATIENCE_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


def wait_until_ready(url: str) -> None:
    def ready() -> bool:
        try:
            return httpx.get(f"{url}/ready", timeout=PATIENCE_S).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(ready)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Long answers are held after some tokens until this is set."""
    made = threading.Event()
    monkeypatch.setattr(SequentialBatch, "step", holding(made))
    yield made
    made.set()


def about(file_id: str, question: str = "What moves?") -> list[Any]:
    """Messages that ask about an upload."""
    parts = [{"type": "file", "file": {"file_id": file_id}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="session")
def recording() -> Path:
    """A demo recording's file."""
    from unfuse.samples.demo import demo_sample

    path = demo_sample("demo:0").event_data
    assert path is not None
    return path


@pytest.fixture(scope="module")
def served(demo_model: Any) -> Iterator[Served]:
    """With limits of size small enough to be reached, and limits of time that only ``passes`` reaches."""
    settings = ServeSettings(
        port=0, max_upload_bytes=8 << 20, opening_s=OPENING_S, timeout_s=TIMEOUT_S, reading_s=PATIENCE_S,
        max_new_tokens=32, max_concurrent=4,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(guard, "_LINGER_S", PATIENCE_S)
        running = Served(demo_model, settings)
        yield running
        running.close()
    assert running.failure is None


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One demo scene in every medium."""
    folder = tmp_path_factory.mktemp("media")
    (row,) = demo_rows(1, FIRST_SEED)
    write_media(folder, row)
    return folder
