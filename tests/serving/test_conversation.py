"""The question and the scene of a conversation."""

from __future__ import annotations

from typing import Any

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
