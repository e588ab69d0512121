"""JSON bodies in OpenAI's format: answers, chunks, files and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unfuse.errors import FeaturesError, MissingPackageError, NonFiniteError, UnfuseError
from unfuse.scheduler import ScheduledQuestion
from unfuse.serving.engine_loop import BusyError
from unfuse.serving.scenes import CachedScene
from unfuse.serving.streamed import EngineStoppedError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """An error that is the response to a request."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """Describe the error in one line.

        Args:
            status: HTTP status.
            code: a short name that programs compare.
            message: for people.
            param: the field at fault.
            headers: additional headers.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = "".join(c if c.isprintable() else " " for c in message)
        self.param = None if param is None else "".join(c for c in param if c.isprintable())
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Body in OpenAI's format."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def as_request_error(error: Exception) -> RequestError:
    """Convert any error of this package to the response of a request."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BusyError):
        return RequestError(
            429, "queue_full", "as many answers or uploads wait as may; try again soon", headers={"Retry-After": "1"}
        )
    if isinstance(error, EngineStoppedError):
        return RequestError(503, "engine_stopped", str(error), headers={"Retry-After": "5"})
    if isinstance(error, TimeoutError):
        return RequestError(504, "timeout", "the request took longer than this server allows")
    if isinstance(error, MissingPackageError):
        return RequestError(501, "format_not_installed", str(error))
    if isinstance(error, NonFiniteError):
        return RequestError(500, "not_finite", str(error))
    if isinstance(error, UnfuseError):
        code = "features_error" if isinstance(error, FeaturesError) else "bad_input"
        return RequestError(400, code, str(error))
    return RequestError(500, "internal_error", f"the server failed on this request ({type(error).__name__})")


def completion(
    reply_id: str, created: int, model: str, answer: ScheduledQuestion, text: str, reason: str, **more: Any
) -> dict[str, Any]:
    """Return a complete ``chat.completion``."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        "id": reply_id, "object": "chat.completion", "created": created, "model": model, "choices": [choice],
        "usage": usage(answer), **more,
    }  # fmt: skip


def chunk(
    reply_id: str, created: int, model: str, delta: Mapping[str, Any] | None, reason: str | None = None, **more: Any
) -> Any:
    """Return a ``chat.completion.chunk``; without a delta it has no choice and carries the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    return {
        "id": reply_id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": choices,
        **more,
    }  # fmt: skip


def usage(answer: ScheduledQuestion) -> dict[str, Any]:
    """Count tokens; ``cached_tokens`` are prompt positions with reused keys and values."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.token_ids),
        "total_tokens": answer.prompt_tokens + len(answer.token_ids),
        "prompt_tokens_details": {"cached_tokens": answer.reused_prefix_tokens},
    }


def file_object(scene: CachedScene, *, reused: bool = False, name: str | None = None) -> dict[str, Any]:
    """Return a scene as OpenAI's file object, with its further facts under ``unfuse``.

    Args:
        scene: the scene.
        reused: whether it was encoded before this request; the request's stages then took no time.
        name: this client's file name; another client may have uploaded the same bytes under another.
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
