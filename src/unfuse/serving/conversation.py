"""Conversion of OpenAI's messages to one question about one scene.

The models behind this endpoint answer one question about one scene and hold no dialogue. The text of the last user
message is the question. The scene is the last scene that a message up to it names. The model does not see any other
message; ``unfuse.notes`` of the answer gives their number.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from unfuse.samples import Question
from unfuse.serving.neutral_fields import MAX_STOPS, without_neutral
from unfuse.serving.wire import RequestError

_DATA_URL: Final = re.compile(r'\s*data:[\w.+/-]{0,100}(?:\s*;\s*[\w.+="-]{1,100})*\s*;\s*base64\s*,', re.ASCII | re.I)
_DATA: Final = "data:"
_MAX_HEAD: Final = 2000
"""Characters in which the head of a data: URL ends."""
_STANDARD: Final = str.maketrans("-_", "+/")
"""From the alphabet for addresses to the usual one (RFC 4648)."""
_MAX_MESSAGES: Final = 1000
_MAX_PARTS: Final = 1000
_MAX_QUESTION: Final = 20_000
"""Characters: the engine's thread tokenises a question between two steps of all answers."""
_TEXT: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_MEDIA: Final = {
    "file": "file", "input_file": None, "image_url": "image_url", "input_image": None, "video_url": "video_url",
}  # fmt: skip
"""Content parts that name a scene, with the field that holds it; None for the part itself."""

Number = StrictFloat
EmptyList = Annotated[list[Any], Field(max_length=0)] | None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: StrictStr | Annotated[list[dict[str, Any]], Field(max_length=_MAX_PARTS)] | None = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool | None = None


class ResponseFormat(BaseModel):
    """Text is the only format."""

    type: Literal["text"]


class ChatRequest(BaseModel):
    """``POST /v1/chat/completions``. A parameter that would change the answer and is not supported is an error."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_neutral_fields(cls, body: Any) -> Any:
        return without_neutral(body) if isinstance(body, dict) else body

    model: StrictStr
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    """Greedy by default."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    """Random by default."""
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=MAX_STOPS)] | None = None
    ignore_eos: StrictBool | None = None
    """An extension to OpenAI's API: answers have exactly ``max_tokens``, for equal work in a benchmark."""
    n: Annotated[StrictInt, Field(ge=1, le=1)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tools: EmptyList = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts: an answer ends before the first of them."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """The question of a conversation, and the scene that it is about."""

    question: Question
    scene_id: str | None = None
    """ID of an upload, or of a demo recording (``demo:0``)."""
    files: tuple[bytes, ...] = ()
    """Files of the scene, if it has no ID."""
    name: str = "inline"
    notes: tuple[str, ...] = ()


def read_conversation(messages: Sequence[Message], question_id: str, *, max_bytes: int) -> Conversation:
    """Find the question and the scene of a conversation.

    Args:
        messages: as the client sent them.
        question_id: of the question that is returned.
        max_bytes: total size of all files inside the messages.

    Raises:
        RequestError: no user message, no scene, several scenes in one message, or unreadable file data.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
    if last is None:
        raise RequestError(400, "no_question", "messages: found none of a user, expected a question", param="messages")
    text = "\n".join(_texts(messages[last]))
    if len(text) > _MAX_QUESTION:
        raise RequestError(
            400, "question_too_long", f"question: found {len(text)} characters, expected at most {_MAX_QUESTION}"
        )
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestError(400, "bad_content", "question: found half a surrogate pair, expected text", param="messages")
    for message in reversed(messages[: last + 1]):
        if media := _media(message):
            break
    else:
        raise RequestError(
            400,
            "no_scene",
            "messages: found no recording, video or picture, expected one; upload it to /v1/files and name its id",
            param="messages",
        )
    notes: tuple[str, ...] = ()
    if others := len(messages) - 1:
        notes = (f"one question, no dialogue: {others} other messages were not shown to the model",)
    question = Question(question_id=question_id, text=text)
    ids = {value for kind, value, _ in media if kind == "id"}
    if ids:
        if len(ids) > 1 or len({kind for kind, *_ in media}) > 1:
            raise RequestError(400, "several_scenes", "message: found several scenes, expected one", param="messages")
        return Conversation(question=question, scene_id=ids.pop(), notes=notes)
    return Conversation(question=question, files=_files(media, max_bytes), name=media[0][2], notes=notes)


def _files(media: Sequence[tuple[str, str, str]], max_bytes: int) -> tuple[bytes, ...]:
    if sum(len(value) for _, value, _ in media) * 3 > 4 * (max_bytes + 3 * len(media) + 128):
        raise RequestError(413, "file_too_large", f"files in a message: expected at most {max_bytes} bytes")
    return tuple(_decoded(value) for _, value, _ in media)


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    texts = []
    for part in message.content or []:
        kind = part.get("type")
        if isinstance(kind, str) and kind in _TEXT:
            text = part.get("text", "")
            if not isinstance(text, str):
                raise RequestError(400, "bad_content", f"content part {kind}: found no text", param="messages")
            texts.append(text)
        elif not isinstance(kind, str) or kind not in _MEDIA:
            shown = f"{kind!r:.40}"
            raise RequestError(
                400,
                "unsupported_content",
                f"content part: found type {shown}, expected text, {', '.join(_MEDIA)}",
                param="messages",
            )
    return texts


def _media(message: Message) -> list[tuple[str, str, str]]:
    """Return (``id`` or ``data``, value, displayed name) of each part that names a scene."""
    if message.content is None or isinstance(message.content, str):
        return []
    return [_source(part) for part in message.content if str(part.get("type")) in _MEDIA]


def _source(part: dict[str, Any]) -> tuple[str, str, str]:
    kind = part["type"]
    key = _MEDIA[kind]
    inner = part if key is None else part.get(key)
    if isinstance(inner, str):
        inner = {"url": inner}
    elif kind == "input_image" and isinstance(part.get("image_url"), str):
        inner = {**part, "url": part["image_url"]}
    if isinstance(inner, dict):
        name = inner.get("filename")
        shown = name if isinstance(name, str) else kind
        if isinstance(inner.get("file_id"), str):
            return "id", inner["file_id"], shown
        if isinstance(inner.get("file_data"), str):
            return "data", inner["file_data"], shown
        url = inner.get("url", inner.get("file_url"))
        if isinstance(url, str):
            if not _is_data(url):
                raise RequestError(
                    400,
                    "remote_url",
                    f"{kind}: found an address, expected a data: URL; this server fetches nothing from elsewhere",
                    param="messages",
                )
            return "data", url, shown
    raise RequestError(
        400, "bad_content", f"content part {kind}: expected a file_id, file_data or a data: URL", param="messages"
    )


def _is_data(value: str) -> bool:
    return value[:100].lstrip()[: len(_DATA)].lower() == _DATA


def _decoded(value: str) -> bytes:
    """Decode base64, with or without the head of a data: URL.

    Line breaks and spaces, the alphabet for addresses, and absent padding are accepted, as by vLLM and OpenAI.
    """
    head = _DATA_URL.match(value[:_MAX_HEAD])
    if head is None and _is_data(value):
        raise RequestError(400, "bad_content", "data: URL: expected one in base64", param="messages")
    text = value[head.end() :] if head else value
    if head and "%" in text:
        text = unquote(text)
    text = "".join(text.split()).translate(_STANDARD).rstrip("=")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "bad_content", "file data: expected base64", param="messages") from None
    if not data:
        raise RequestError(400, "bad_content", "file data: found none", param="messages")
    return data
