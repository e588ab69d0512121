"""Models of video and of pictures: each gets its own medium of an upload, and gives its own answer."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

import unfuse
from tests.serving.conftest import Served
from unfuse.serving.settings import ServeSettings

QUESTION = "What moves?"


@pytest.mark.parametrize(("name", "frames"), [("random:video-llava-tiny", 8), ("random:llava-tiny", 1)])
def test_every_medium(name: str, frames: int, media: Path) -> None:
    video, recording = media / "mp4/demo/000000.mp4", media / "event_npy/demo/000000.npy"
    picture = media / "event_image/demo/000000_0.png"
    model = unfuse.load(name, device="cpu")
    samples = {
        video: unfuse.Sample.from_video(video),
        picture: unfuse.Sample.from_image(picture),
        recording: unfuse.Sample.from_events(recording),
    }
    expected = {
        path: model.generate(QUESTION, model.encode(sample), max_new_tokens=8) for path, sample in samples.items()
    }
    served = Served(model, ServeSettings(port=0, max_new_tokens=8))
    try:
        for path, answer in expected.items():
            with path.open("rb") as file:
                scene: Any = served.openai.files.create(file=file, purpose="user_data")
            assert scene.unfuse["num_frames"] == (1 if path is picture else frames)
            part = {"type": "file", "file": {"file_id": scene.id}}
            assert ask(served, name, part) == answer.text
        url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        assert ask(served, name, {"type": "image_url", "image_url": {"url": url}}) == expected[picture].text
        url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
        assert ask(served, name, {"type": "video_url", "video_url": {"url": url}}) == expected[video].text
    finally:
        served.close()


def ask(served: Served, model: str, part: Any) -> str | None:
    messages: Any = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
    return served.openai.chat.completions.create(model=model, messages=messages).choices[0].message.content
