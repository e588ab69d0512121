"""The name that a model is served under."""

from __future__ import annotations

from pathlib import Path

from unfuse.serving.service import public_name


def test_a_model_s_name_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "EventGPT-7b").mkdir()
    assert public_name(str(tmp_path / "EventGPT-7b")) == "EventGPT-7b"
    assert public_name("demo") == "demo"
    assert public_name("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
