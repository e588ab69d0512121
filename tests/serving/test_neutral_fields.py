"""Fields that clients of other servers send: neutral ones pass, the others are named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from unfuse.serving.conversation import ChatRequest
from unfuse.serving.neutral_fields import _NEUTRAL, without_neutral
from unfuse.serving.wire import RequestError

BASE: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
OPENAI = [
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls",
    "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
    "response_format", "safety_identifier", "seed", "service_tier", "stop", "store", "stream",
    "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
    "web_search_options",
]  # fmt: skip


@pytest.mark.parametrize("name", [*OPENAI, *_NEUTRAL])
def test_null_is_absence(name: str) -> None:
    assert ChatRequest.model_validate(BASE | {name: None}) == ChatRequest.model_validate(BASE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_effort", "none"), ("function_call", "none"), ("functions", []), ("verbosity", "medium"),
        ("top_k", -1), ("top_k", 0), ("min_p", 0.0), ("min_p", 0), ("repetition_penalty", 1.0), ("min_tokens", 0),
        ("skip_special_tokens", True), ("stop_token_ids", []), ("best_of", 1), ("add_generation_prompt", True),
        ("use_beam_search", False), ("chat_template_kwargs", {}), ("length_penalty", 1), ("request_id", "abc"),
        ("echo", False), ("priority", 0), ("frequency_penalty", 0), ("n", 1), ("stop", ["a", "b", "c", "d"]),
        ("stop", []), ("logit_bias", {}), ("tools", []), ("response_format", {"type": "text"}),
    ],
)  # fmt: skip
def test_neutral_values(name: str, value: Any) -> None:
    ChatRequest.model_validate(BASE | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_effort", "high"), ("top_k", 50), ("min_p", 0.1), ("repetition_penalty", 1.1), ("min_tokens", 5),
        ("min_tokens", False), ("best_of", True), ("skip_special_tokens", 1), ("stop_token_ids", [2]),
        ("audio", {"voice": "a"}), ("functions", [{"name": "f"}]), ("guided_json", {}), ("echo", True),
        ("chat_template", "x"), ("stop", list("abcde")), ("prediction", {}),
    ],
)  # fmt: skip
def test_other_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        ChatRequest.model_validate(BASE | {name: value})
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"{name}: found ")
    assert caught.value.body["error"]["param"] == name


def test_five_stops_are_counted() -> None:
    with pytest.raises(RequestError, match="stop: found 5 texts, expected at most 4"):
        without_neutral({"stop": list("abcde")})


def test_unknown_fields_stay_errors() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        ChatRequest.model_validate(BASE | {"tempreature": None})
