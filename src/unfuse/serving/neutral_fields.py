"""Fields of OpenAI's and vLLM's APIs that this server does not support, at values that ask for nothing.

Clients send every field that they know. A field that is null, or has the value that the other server takes without it,
leaves the answer as it is. Any other value of such a field is an error, because the answer would not have it.
"""

from __future__ import annotations

from typing import Any, Final

from unfuse.serving.wire import RequestError

MAX_STOPS: Final = 4
_ANY: Final = object()
"""Any value: the field is for the client's own records."""
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_retention": (_ANY,),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": (_ANY,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": ({},),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "media_io_kwargs": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "request_id": (_ANY,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "top_k": (-1, 0),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


def without_neutral(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request's fields without the unsupported ones at neutral values.

    Raises:
        RequestError: an unsupported field has another value, or there are too many stop texts.
    """
    for name, allowed in _NEUTRAL.items():
        if name in body and body[name] is not None and not any(_equal(body[name], value) for value in allowed):
            listed = " or ".join(["null", *(repr(value).lower() for value in allowed if value is not _ANY)])
            raise RequestError(
                400,
                "unsupported_parameter",
                f"{name}: found {body[name]!r:.60}, which this server does not support, expected {listed}",
                param=name,
            )
    stops = body.get("stop")
    if isinstance(stops, list) and len(stops) > MAX_STOPS:
        message = f"stop: found {len(stops)} texts, expected at most {MAX_STOPS}"
        raise RequestError(400, "invalid_value", message, param="stop")
    return {name: value for name, value in body.items() if name not in _NEUTRAL}


def _equal(value: Any, neutral: object) -> bool:
    """Return whether two JSON values are equal; true is no number."""
    return neutral is _ANY or (isinstance(value, bool) == isinstance(neutral, bool) and value == neutral)
