"""The question and the scene of a conversation."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest

from unfuse.samples import Question
from unfuse.serving.conversation import Message, read_conversation
from unfuse.serving.wire import RequestError


def messages(*given: Any) -> list[Message]:
    return [Message.model_validate(each) for each in given]


def scene(file_id: str) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": file_id}}


def test_the_last_question_about_the_last_scene() -> None:
    conversation = read_conversation(
        messages(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [scene("a"), {"type": "text", "text": "First?"}]},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "user", "content": [scene("b"), {"type": "input_text", "text": "Second?"}]},
            {"role": "user", "content": [{"type": "text", "text": "Third"}, {"type": "text", "text": "and more?"}]},
            {"role": "assistant", "content": "A beginning"},
        ),
        "q",
        max_bytes=100,
    )
    assert conversation.question == Question(question_id="q", text="Third\nand more?")
    assert conversation.scene_id == "b"
    assert "5 other messages" in conversation.notes[0]


def test_one_message_is_no_dialogue() -> None:
    assert read_conversation(messages({"role": "user", "content": [scene("a")]}), "q", max_bytes=1).notes == ()


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([scene("a"), scene("b")], "several_scenes"),
        ([scene("a"), {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}], "several_scenes"),
        ([{"type": "file", "file": {"file_data": "a" * 4000}}], "file_too_large"),
        (100 * [{"type": "file", "file": {"file_data": "aaaa" * 10}}], "file_too_large"),
    ],
)
def test_scenes_that_are_not_one(parts: list[Any], code: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_conversation(messages({"role": "user", "content": parts}), "q", max_bytes=1000)
    assert caught.value.code == code


RAW = bytes(range(256)) * 3 + b"\xfb\xff\xfe"
PLAIN = base64.b64encode(RAW).decode()
HEAD = "data:application/octet-stream;base64,"


@pytest.mark.parametrize(
    "value",
    [
        PLAIN,
        base64.encodebytes(RAW).decode(),
        base64.encodebytes(RAW).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(RAW).decode(),
        PLAIN.rstrip("="),
        base64.urlsafe_b64encode(RAW).decode().rstrip("="),
        f" {PLAIN}\n",
        HEAD + PLAIN,
        HEAD + " " + PLAIN,
        HEAD.upper() + PLAIN,
        "Data:image/png;BASE64," + PLAIN,
        "data:;base64," + PLAIN,
        "data:image/png;charset=utf-8;base64," + PLAIN,
        "data:image/png; base64, " + PLAIN,
        'data:image/png;name="a.png";base64,' + PLAIN,
        HEAD + quote(PLAIN),
        "\n" + HEAD + base64.encodebytes(RAW).decode(),
    ],
)
@pytest.mark.parametrize("kind", ["file", "image_url"])
def test_forms_of_base64(value: str, kind: str) -> None:
    part = {"type": "file", "file": {"file_data": value}}
    if kind == "image_url":
        if not value.lower().lstrip().startswith("data:"):
            return
        part = {"type": "image_url", "image_url": {"url": value}}
    found = read_conversation(messages({"role": "user", "content": [part]}), "q", max_bytes=10_000)
    assert found.files == (RAW,)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("http://example.com/a.png", "remote_url"),
        ("HTTPS://example.com/a.png", "remote_url"),
        ("file:///etc/passwd", "remote_url"),
        ("data:image/png,abc", "bad_content"),
        ("DATA:text/plain;charset=utf-8,abc", "bad_content"),
        (HEAD + "????", "bad_content"),
        (HEAD + "AAA=AAAA", "bad_content"),
        (HEAD + "A", "bad_content"),
        (HEAD, "bad_content"),
        (HEAD + "äöü", "bad_content"),
        ("data:" + ";a" * 5000, "bad_content"),
    ],
)
def test_urls_that_are_no_data(value: str, code: str) -> None:
    part = {"type": "image_url", "image_url": {"url": value}}
    with pytest.raises(RequestError) as caught:
        read_conversation(messages({"role": "user", "content": [part]}), "q", max_bytes=100_000)
    assert caught.value.code == code
