"""What goes over the wire: OpenAI's shapes of answers, chunks, files and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unfuse.errors import FeaturesError, MissingPackageError, UnfuseError
from unfuse.serving.answer import Answer, EngineGoneError
from unfuse.serving.engine_loop import BusyError
from unfuse.serving.scenes import Scene

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that gets an error for an answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """Says what, in one line.

        Args:
            status: of HTTP.
            code: a short name that programs compare.
            message: for people.
            param: the field at fault.
            headers: beside the usual ones.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = "".join(c if c.isprintable() else " " for c in message)
        self.param = None if param is None else "".join(c for c in param if c.isprintable())
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def as_request_error(error: Exception) -> RequestError:
    """Any failure of ours as one of a request."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BusyError):
        return RequestError(
            429, "queue_full", "as many answers or uploads wait as may; try again soon", headers={"Retry-After": "1"}
        )
    if isinstance(error, EngineGoneError):
        return RequestError(503, "engine_stopped", str(error), headers={"Retry-After": "5"})
    if isinstance(error, TimeoutError):
        return RequestError(504, "timeout", "the request took longer than this server allows")
    if isinstance(error, MissingPackageError):
        return RequestError(501, "format_not_installed", str(error))
    if isinstance(error, UnfuseError):
        code = "features_error" if isinstance(error, FeaturesError) else "bad_input"
        return RequestError(400, code, str(error))
    return RequestError(500, "internal_error", f"the server failed on this request ({type(error).__name__})")


def completion(
    reply_id: str, created: int, model: str, answer: Answer, text: str, reason: str, **more: Any
) -> dict[str, Any]:
    """A whole ``chat.completion``."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        "id": reply_id, "object": "chat.completion", "created": created, "model": model, "choices": [choice],
        "usage": usage(answer), **more,
    }  # fmt: skip


def chunk(
    reply_id: str, created: int, model: str, delta: Mapping[str, Any] | None, reason: str | None = None, **more: Any
) -> Any:
    """A ``chat.completion.chunk``; without a delta it has no choice and carries the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    return {
        "id": reply_id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": choices,
        **more,
    }  # fmt: skip


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens; ``cached_tokens`` are prompt positions whose keys and values were taken over."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.reused_prefix_tokens},
    }


def file_object(scene: Scene, *, reused: bool = False, name: str | None = None) -> dict[str, Any]:
    """A scene as OpenAI's file, with what else is known of it under ``unfuse``.

    Args:
        scene: the scene.
        reused: whether it was known before this request, which then took no time.
        name: what this client calls it; another may have called the same bytes something else.
    """
    stages = dict.fromkeys(scene.stages_ms, 0.0) if reused else dict(scene.stages_ms)
    return {
        "id": scene.scene_id,
        "object": "file",
        "bytes": scene.num_bytes,
        "created_at": scene.created,
        "filename": name or scene.name,
        "purpose": "user_data",
        "status": "processed",
        "unfuse": {
            "media": scene.media,
            "media_sha256": scene.media_sha256,
            "num_events": scene.num_events,
            "num_frames": len(scene.pictures),
            "frames": [f"/v1/files/{scene.scene_id}/frames/{i}" for i in range(len(scene.pictures))],
            "media_tokens": scene.media_tokens,
            "notes": list(scene.notes),
            "features": "reused" if reused else scene.source,
            "stages": {f"{name}_ms": ms for name, ms in stages.items()},
        },
    }
