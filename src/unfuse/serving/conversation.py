"""From OpenAI's messages to one question about one scene.

The models behind this endpoint take one question about one scene, no dialogue. So the text of the last user message is
the question, and the scene is the last one that any message up to it names. Every other message is not shown to the
model; the answer's ``unfuse.notes`` say how many there were.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from unfuse.serving.wire import RequestError

_DATA_URL: Final = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w.+=-]{1,100})*;base64,", re.ASCII)
_MAX_MESSAGES: Final = 1000
_MAX_PARTS: Final = 1000
_MAX_QUESTION: Final = 20_000
"""Characters: it is tokenised between two steps of everybody's answers."""
_MAX_STOPS: Final = 4
_TEXT: Final = frozenset({"text", "input_text", "output_text", "refusal"})
_MEDIA: Final = {
    "file": "file", "input_file": None, "image_url": "image_url", "input_image": None, "video_url": "video_url",
}  # fmt: skip
"""Parts that name a scene, and the field in which they do; None: in the part itself."""

Number = StrictFloat
Nothing = Annotated[list[Any], Field(max_length=0)] | None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: StrictStr | Annotated[list[dict[str, Any]], Field(max_length=_MAX_PARTS)] | None = None


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool | None = None


class ResponseFormat(BaseModel):
    """Only text is written."""

    type: Literal["text"]


class ChatRequest(BaseModel):
    """``POST /v1/chat/completions``. What would change the answer and is not served is refused by name."""

    model_config = ConfigDict(extra="forbid")
    model: StrictStr
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)]
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    """Greedy where it is not given."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    """Drawn by the server where it is not given."""
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=_MAX_STOPS)] | None = None
    ignore_eos: StrictBool | None = None
    """Not OpenAI's: answers of exactly ``max_tokens``, for equal work in a benchmark."""
    n: Annotated[StrictInt, Field(ge=1, le=1)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tools: Nothing = None
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
        """Texts before which an answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One question about one scene."""

    question: str
    scene_id: str | None = None
    """Of an upload, or of a demo recording (``demo:0``)."""
    files: tuple[bytes, ...] = ()
    """Else the scene itself."""
    name: str = "inline"
    notes: tuple[str, ...] = ()


def asked_of(messages: Sequence[Message], *, most_bytes: int) -> Asked:
    """What a conversation comes to.

    Args:
        messages: as the client sent them.
        most_bytes: of all files inside them together.

    Raises:
        RequestError: no user message, no scene, several scenes in one message, or a scene that cannot be had.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i].role == "user"), None)
    if last is None:
        raise RequestError(400, "no_question", "messages: found none of a user, expected a question", param="messages")
    question = "\n".join(_texts(messages[last]))
    if len(question) > _MAX_QUESTION:
        raise RequestError(
            400, "question_too_long", f"question: found {len(question)} characters, expected at most {_MAX_QUESTION}"
        )
    if any("\ud800" <= c <= "\udfff" for c in question):
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
    return _asked(media, question, notes, most_bytes)


def _asked(media: Sequence[tuple[str, str, str]], question: str, notes: tuple[str, ...], most_bytes: int) -> Asked:
    """Of (how, value, name) of each scene or picture in one message."""
    ids = {value for how, value, _ in media if how == "id"}
    if ids:
        if len(ids) > 1 or len({how for how, *_ in media}) > 1:
            raise RequestError(400, "several_scenes", "message: found several scenes, expected one", param="messages")
        return Asked(question=question, scene_id=ids.pop(), notes=notes)
    if sum(len(value) for _, value, _ in media) * 3 > 4 * (most_bytes + 3 * len(media) + 128):
        raise RequestError(413, "file_too_large", f"files in a message: expected at most {most_bytes} bytes")
    files = tuple(_decoded(value) for _, value, _ in media)
    return Asked(question=question, files=files, name=media[0][2], notes=notes)


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
    """(``id`` or ``data``, value, shown name) of each part that names a scene."""
    if message.content is None or isinstance(message.content, str):
        return []
    return [_source(part) for part in message.content if str(part.get("type")) in _MEDIA]


def _source(part: dict[str, Any]) -> tuple[str, str, str]:
    kind = part["type"]
    place = _MEDIA[kind]
    inner = part if place is None else part.get(place)
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
            if not url.startswith("data:"):
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


def _decoded(value: str) -> bytes:
    """Base64, with or without the head of a data: URL."""
    head = _DATA_URL.match(value)
    if head is None and value.startswith("data:"):
        raise RequestError(400, "bad_content", "data: URL: expected one in base64", param="messages")
    try:
        data = base64.b64decode(value[head.end() :] if head else value, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "bad_content", "file data: expected base64", param="messages") from None
    if not data:
        raise RequestError(400, "bad_content", "file data: found none", param="messages")
    return data


def opened(files: Sequence[bytes]) -> list[io.BytesIO]:
    """As files."""
    return [io.BytesIO(data) for data in files]
