"""The endpoint through OpenAI's own client."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.serving.conftest import Served, about
from tests.serving.holding import AFTER
from tests.started import wait_for
from unfuse.samples import Sample

QUESTION = "What moves?"


@pytest.fixture(scope="module")
def file_id(served: Served, recording: Path) -> str:
    with recording.open("rb") as file:
        return served.openai.files.create(file=file, purpose="user_data").id


def test_an_upload_is_encoded_once(served: Served, file_id: str, recording: Path) -> None:
    encoded = served.metric('unfuse_scenes_total{source="encoded"}')
    again = served.http.post("/v1/files", files={"file": ("another name.npy", recording.read_bytes())}).json()
    assert again["id"] == file_id
    assert again["filename"] == "another name.npy", "what this client calls it, not what another did"
    assert again["unfuse"]["features"] == "reused"
    assert again["unfuse"]["stages"] == {"load_ms": 0, "preprocess_ms": 0, "encode_ms": 0}
    assert served.metric('unfuse_scenes_total{source="encoded"}') == encoded == 1
    first = served.http.get(f"/v1/files/{file_id}").json()
    assert first["filename"] == recording.name
    assert first["bytes"] == recording.stat().st_size
    assert all(ms > 0 for ms in first["unfuse"]["stages"].values())


def test_an_answer_is_the_model_s(served: Served, file_id: str, recording: Path, demo_model: Any) -> None:
    reply = served.openai.chat.completions.create(model="demo", messages=about(file_id))
    features = demo_model.encode(Sample.from_events(recording))
    expected = demo_model.generate(QUESTION, features, max_new_tokens=32)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == expected.output_tokens
    assert reply.usage.prompt_tokens == expected.prompt_tokens


def test_a_further_question_reuses_features_and_prefix(served: Served, file_id: str) -> None:
    served.openai.chat.completions.create(model="demo", messages=about(file_id))
    reply = served.openai.chat.completions.create(model="demo", messages=about(file_id, "How fast is it?"))
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert 100 < (reply.usage.prompt_tokens_details.cached_tokens or 0) < reply.usage.prompt_tokens
    extra = reply.unfuse  # type: ignore[attr-defined]
    assert extra["features"] == "reused"
    assert extra["stages"]["load_ms"] == extra["stages"]["encode_ms"] == 0
    assert extra["stages"]["prefill_ms"] > 0
    assert extra["stages"]["decode_ms"] > 0


def test_streamed_deltas_join_to_the_answer(served: Served, file_id: str) -> None:
    whole = served.openai.chat.completions.create(model="demo", messages=about(file_id))
    chunks = list(
        served.openai.chat.completions.create(
            model="demo", messages=about(file_id), stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(deltas) > 5
    assert "".join(deltas) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]
    assert chunks[-2].unfuse["stages"]["decode_ms"] > 0  # type: ignore[attr-defined]


def test_a_stream_has_data_lines_only(served: Served, file_id: str) -> None:
    """Clients of OpenAI's stream need not know comments, such as the pings that keep other streams open."""
    request = {"model": "demo", "messages": about(file_id), "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=request) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        body = reply.read().decode()
    assert "\r" not in body
    events = body.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events[-1] == "data: [DONE]"


def test_a_truncated_answer_has_finish_reason_length(served: Served, file_id: str) -> None:
    reply = served.openai.chat.completions.create(model="demo", messages=about(file_id), max_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3


def test_a_stop_text_ends_an_answer_before_it(served: Served, file_id: str) -> None:
    text = served.openai.chat.completions.create(model="demo", messages=about(file_id)).choices[0].message.content or ""
    stop = text.split()[3]
    for stream in (False, True):
        reply = served.openai.chat.completions.create(model="demo", messages=about(file_id), stop=stop, stream=stream)  # type: ignore[call-overload]
        if stream:
            received = "".join(c.choices[0].delta.content or "" for c in reply if c.choices)
        else:
            received = reply.choices[0].message.content
        assert received == text[: text.index(stop)]


def test_sampling_is_seeded(served: Served, file_id: str) -> None:
    def ask(seed: int) -> str | None:
        reply = served.openai.chat.completions.create(
            model="demo", messages=about(file_id), temperature=2.0, seed=seed, max_tokens=16
        )
        return reply.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_earlier_turns_name_the_scene_and_are_not_passed_on(served: Served, file_id: str) -> None:
    alone = served.openai.chat.completions.create(model="demo", messages=about(file_id, "How fast is it?"))
    messages = [
        {"role": "system", "content": "Answer in French."},
        *about(file_id),
        {"role": "assistant", "content": "A box moves."},
        {"role": "user", "content": "How fast is it?"},
    ]
    reply = served.openai.chat.completions.create(model="demo", messages=messages)  # type: ignore[arg-type]
    assert reply.choices[0].message.content == alone.choices[0].message.content
    assert reply.unfuse["notes"] == ["one question, no dialogue: 3 other messages were not shown to the model"]  # type: ignore[attr-defined]


def test_a_recording_inside_a_message(served: Served, recording: Path) -> None:
    data = base64.b64encode(recording.read_bytes()).decode()
    part = {"type": "file", "file": {"filename": "r.npy", "file_data": f"data:application/octet-stream;base64,{data}"}}
    content = [part, {"type": "text", "text": QUESTION}]
    messages: Any = [{"role": "user", "content": content}]
    reply = served.openai.chat.completions.create(model="demo", messages=messages)
    assert reply.choices[0].message.content


def test_event_frames_as_pictures_are_one_scene(served: Served, file_id: str) -> None:
    """The frames that the server shows, sent back: the same picture of the scene, so the same answer."""
    parts: list[Any] = []
    for frame_url in served.http.get(f"/v1/files/{file_id}").json()["unfuse"]["frames"]:
        png = served.http.get(frame_url)
        assert png.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(png.content)).size == (640, 480)
        url = f"data:image/png;base64,{base64.b64encode(png.content).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    content = [*parts, {"type": "text", "text": QUESTION}]
    reply = served.openai.chat.completions.create(model="demo", messages=[{"role": "user", "content": content}])
    expected = served.openai.chat.completions.create(model="demo", messages=about(file_id))
    assert reply.choices[0].message.content == expected.choices[0].message.content
    assert reply.unfuse["features"] == "encoded"  # type: ignore[attr-defined]


def test_demo_recordings_by_name(served: Served) -> None:
    demo = served.http.post("/v1/unfuse/demo/demo:1").json()
    reply = served.openai.chat.completions.create(model="demo", messages=about("demo:1"))
    assert reply.unfuse["scene"] == demo["id"]  # type: ignore[attr-defined]
    assert served.http.post("/v1/unfuse/demo/demo:99").status_code == 404


def test_files_are_listed_and_deleted(served: Served) -> None:
    demo = served.http.post("/v1/unfuse/demo/demo:2").json()["id"]
    assert demo in [file.id for file in served.openai.files.list()]
    assert served.openai.files.delete(demo).deleted
    for call in (served.openai.files.retrieve, served.openai.files.delete):
        with pytest.raises(openai.NotFoundError, match="upload it again"):
            call(demo)
    with pytest.raises(openai.NotFoundError):
        served.openai.chat.completions.create(model="demo", messages=about(demo))


def test_models(served: Served) -> None:
    assert [model.id for model in served.openai.models.list()] == ["demo"]
    assert served.openai.models.retrieve("demo").owned_by == "unfuse"
    with pytest.raises(openai.NotFoundError, match="expected 'demo'"):
        served.openai.chat.completions.create(model="gpt-4o", messages=about("demo:0"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "found no recording"),
        ({"messages": [{"role": "assistant", "content": "Well."}]}, "expected a question"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature: "),
        ({"temperature": True}, "temperature: "),
        ({"n": 2}, "n:"),
        ({"max_tokens": 10**6}, "at most 4096"),
        ({"extra_body": {"beam_width": 3}}, "beam_width"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": about("demo:0", "<event> and more <event>")}, "special token"),
        ({"messages": about("demo:0", "why " * 3000)}, "a shorter question"),
        ({"messages": about("demo:0", "why " * 30_000)}, "at most 20000"),
    ],
)
def test_requests_that_cannot_be_served(served: Served, changes: dict[str, Any], words: str) -> None:
    request: dict[str, Any] = {"model": "demo", "messages": about("demo:0"), **changes}
    with pytest.raises(openai.BadRequestError) as caught:
        served.openai.chat.completions.create(**request)
    error = caught.value.body
    assert isinstance(error, dict)
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_client_that_leaves_stops_its_answer(served: Served, file_id: str, release: threading.Event) -> None:
    """It is held in its middle: it cannot have come to its end."""
    written = served.metric("unfuse_output_tokens_total")
    stream = served.openai.chat.completions.create(
        model="demo", messages=about(file_id), max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert served.metric("unfuse_requests_running") == 1
    stream.close()
    wait_for(lambda: served.metric("unfuse_requests_running") == 0)
    assert not release.is_set()
    assert served.metric("unfuse_output_tokens_total") - written <= AFTER


def test_states_and_metrics(served: Served, file_id: str) -> None:
    served.openai.chat.completions.create(model="demo", messages=about(file_id))
    assert served.http.get("/health").json() == {"status": "alive"}
    assert served.http.get("/ready").json() == {"status": "ready"}
    for stage in ("load", "preprocess", "encode", "prefill", "decode"):
        assert served.metric(f'unfuse_stage_seconds_count{{stage="{stage}"}}') > 0
    for name in ("unfuse_ttft_seconds_count", "unfuse_queue_seconds_count", "unfuse_reused_prefix_tokens_total",
                 'unfuse_errors_total{code="bad_input"}', "unfuse_scenes_kept_bytes"):  # fmt: skip
        assert served.metric(name) > 0, name
    assert served.metric("unfuse_requests_running") == served.metric("unfuse_requests_waiting") == 0


def test_head_is_get_without_a_body(served: Served, file_id: str) -> None:
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/demo", f"/v1/files/{file_id}"):
        head = served.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == served.http.get(path).headers["content-type"]
    assert served.http.head("/v1/chat/completions").status_code == 405
    assert served.http.head("/v1/nothing").status_code == 404


def test_every_reply_is_closed_to_other_sites(served: Served) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/nothing"):
        headers = served.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
