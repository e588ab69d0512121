"""A server on the demo model, in a thread of this process or in one of its own, and its clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from unfuse.samples.demo.folder import FIRST_SEED, demo_rows, write_media
from unfuse.serving.server import bind, serve, url_of
from unfuse.serving.settings import ServeSettings

READY_S = 60.0
OPENING_S = 2.0
"""What clients of ``served`` have for a head, and for each gap."""


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
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.token or "none", max_retries=0, timeout=30)

    def close(self) -> None:
        """As SIGTERM would."""
        self.http.close()
        self.openai.close()
        self.server.should_exit = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def metric(self, name: str) -> float:
        """A sample of ``/metrics`` by its whole name, 0 where there is none."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


class ServedProcess:
    """``unfuse serve`` itself."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unfuse", "serve", "demo", "--device", "cpu", "--port", "0", *arguments],
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
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=30)

    def kill(self) -> None:
        """At once."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> int:
        """In good order, if it still runs; the exit code."""
        self.openai.close()
        self.process.terminate()
        code = self.process.wait(timeout=30)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready")


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
    """With limits small enough to be reached."""
    settings = ServeSettings(
        port=0, max_upload_bytes=8 << 20, opening_s=OPENING_S, timeout_s=20.0, max_new_tokens=32, max_concurrent=4
    )
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
