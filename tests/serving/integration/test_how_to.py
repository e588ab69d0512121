"""The page of the docs: its Python runs against a server, and its options and limits are those of the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.serving.conftest import Served
from unfuse.serving.conversation import ChatRequest
from unfuse.serving.kinds import kind_of
from unfuse.serving.sandbox_client import MEMORY_BYTES
from unfuse.serving.sandbox_worker import MAX_FRAME_PIXELS, MAX_SCENE_PIXELS
from unfuse.serving.settings import TOKEN_VARIABLE, ServeSettings

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "serve.md").read_text()


def test_the_client_s_example_runs(
    served: Served, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(recording, tmp_path / "recording.npy")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:8000", served.url), namespace)
    namespace["client"].close()  # type: ignore[attr-defined]
    output = capsys.readouterr().out
    assert "positions of the prompt reused" in output
    assert "'encode_ms': 0.0" in output
    assert "CompletionUsage" in output


def test_the_limits_are_the_code_s() -> None:
    limits = ServeSettings()
    assert f"| `--max-upload-mb` | {limits.max_upload_bytes >> 20} |" in PAGE
    assert f"| files inside a message | {limits.max_inline_bytes >> 20} MiB |" in PAGE
    assert f"| `--queue`: answers that wait, and uploads under way | {limits.queue} |" in PAGE
    assert f"| `--timeout-s`: one request | {limits.timeout_s:g} |" in PAGE
    assert f"takes nothing | {limits.opening_s:g} s |" in PAGE
    frame = f"{MAX_FRAME_PIXELS // 10**6} million pixels in a frame"
    scene = f"{MAX_SCENE_PIXELS // 10**6} million pixels in all frames of a scene"
    assert f"| {limits.reading_s:g} s, {MEMORY_BYTES >> 30} GiB of memory, {frame}, {scene} |" in PAGE
    assert TOKEN_VARIABLE in PAGE


def test_what_is_served_and_refused_is_the_code_s() -> None:
    (served,) = re.findall(r"^Served parameters: (.*?), for equal work", PAGE, re.MULTILINE | re.DOTALL)
    names = set(re.findall(r"`(\w+)`", served))
    assert {"max_tokens", "stop", "ignore_eos"} < names <= set(ChatRequest.model_fields)
    assert kind_of(b"RIFF\0\0\0\0WEBP") == "image"
