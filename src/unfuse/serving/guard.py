"""Who is let in, and how much may come: the layer around the application.

Before a byte of a body is read: the Host that the client thinks it talks to (a page of another site may have its own
name point at this machine), the Origin (another site's page may send forms here), the token. Then bodies are counted
and timed as they come, all together and each, and answers that nobody takes are given up.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from unfuse.serving.settings import MIB, ServeSettings, is_loopback
from unfuse.serving.wire import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

UPLOADS: Final = "/v1/files"
_OPEN_PATHS: Final = frozenset({"/", "/health", "/ready"})
"""Served without a token: the page holds nothing, and the others say up or down."""
_MULTIPART_ROOM: Final = 64 << 10
_JSON_ROOM: Final = 1 * MIB
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 16 * MIB
_TOGETHER: Final = 4
"""Bodies of the largest size that may be under way together."""
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_CLOSED: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d*)?", re.ASCII)
_NOT_KEPT: Final = (b"cache-control", b"no-store")


class GivenUpError(Exception):
    """The client takes no more of the answer."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: App, settings: ServeSettings, seen: Callable[[str, int], None]):
        """Around an application.

        Args:
            app: what is guarded.
            settings: whom and how much to let in.
            seen: told the path (a known one, or ``other``) and status of every answer.
        """
        self._app = app
        self._settings = settings
        self._seen = seen
        self._token = None if settings.token is None else _digest(settings.token.encode())
        self._local_only = is_loopback(settings.host)
        self._under_way = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, receive, self._most(scope["path"]), self._settings)
        answer = _Answer(send, body, self._settings.opening_s, lambda status: self._seen(scope["path"], status))
        try:
            try:
                headers = _headers(scope)
                self._check(scope, headers)
                body.expect(headers)
                await self._app(scope, body.receive, answer.send)
            except RequestError as error:
                body.failure = error
            if body.failure is not None and not answer.started:
                await answer.refuse(body.failure)
        except GivenUpError:
            pass
        finally:
            self._under_way -= body.size

    def _check(self, scope: MutableMapping[str, Any], headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self._local_only and not is_loopback(_without_port(host)):
            raise RequestError(
                421, "wrong_host", f"Host {host!r:.80}: expected this machine, as 127.0.0.1 or localhost"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(
                403, "foreign_origin", f"Origin {origin!r:.80}: expected none, or this server's own page"
            )
        if self._token is not None and scope["path"] not in _OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Digests: nothing of the token's length or content shows in the time that this takes.
            right = hmac.compare_digest(_digest(given.strip().encode("latin-1", "replace")), self._token)
            if scheme.lower() != "bearer" or not right:
                raise RequestError(
                    401,
                    "invalid_token",
                    "found no valid token, expected Authorization: Bearer TOKEN",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _most(self, path: str) -> int:
        if path == UPLOADS:
            return self._settings.max_upload_bytes + _MULTIPART_ROOM
        return self._settings.max_inline_bytes * 4 // 3 + _JSON_ROOM

    def take(self, size: int) -> None:
        """Counts bytes that are under way.

        Raises:
            RequestError: they are too many with those of other requests.
        """
        if self._under_way + size > _TOGETHER * (self._settings.max_upload_bytes + _JSON_ROOM):
            raise RequestError(
                429, "too_much_under_way", "too many bytes are being uploaded at once", headers={"Retry-After": "5"}
            )
        self._under_way += size


class _Body:
    """A request's body as it comes."""

    def __init__(self, guard: Guard, receive: Receive, most: int, settings: ServeSettings):
        self.size = 0
        self.ended = False
        self.failure: RequestError | None = None
        """Why no more of it is taken; the application's own words about that are not sent."""
        self._guard = guard
        self._receive = receive
        self._most = most
        self._gap_s = settings.opening_s
        self._deadline = time.monotonic() + settings.timeout_s

    def expect(self, headers: Mapping[str, str]) -> None:
        """Refuses by what a client announces."""
        length = headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part, counted and timed."""
        if self.ended:
            return await self._receive()  # until the client leaves
        try:
            return await self._part()
        except RequestError as error:
            self.failure = error
            raise

    async def _part(self) -> Message:
        left = min(self._gap_s, self._deadline - time.monotonic())
        try:
            async with asyncio.timeout(max(left, 0.0)):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(408, "too_slow", "the request's body came too slowly") from None
        if message["type"] == "http.request":
            part = len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
            if self.size + part > self._most:
                raise self._too_large()
            self._guard.take(part)
            self.size += part
        return message

    async def linger(self) -> None:
        """Takes a little of what still comes and drops it: a client that only writes would never see the answer."""
        dropped = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self.ended and dropped < _LINGER_BYTES:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        except TimeoutError:
            pass

    def _too_large(self) -> RequestError:
        return RequestError(413, "too_large", f"the request: expected at most {self._most} bytes")


class _Answer:
    """A response on its way out."""

    def __init__(self, send: Send, body: _Body, patience_s: float, seen: Callable[[int], None]):
        self.started = False
        self._send = send
        self._body = body
        self._patience_s = patience_s
        self._seen = seen

    async def send(self, message: Message) -> None:
        """What the application says."""
        if self.started or self._body.failure is None:
            await self._out(message)

    async def _out(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._seen(message["status"])
            names = {name.lower() for name, _ in message["headers"]}
            more = [header for header in (*_HEADERS, _CLOSED, _NOT_KEPT) if header[0] not in names]
            message = {**message, "headers": [*message["headers"], *more]}
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(message)
        except TimeoutError:
            raise GivenUpError from None

    async def refuse(self, error: RequestError) -> None:
        """An error, whole before the connection is closed on a client that still sends."""
        data = json.dumps(error.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
            (b"connection", b"close"),
            *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
        ]
        await self._out({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._out({"type": "http.response.body", "body": data, "more_body": True})
        await self._body.linger()
        await self._out({"type": "http.response.body", "body": b"", "more_body": False})


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """By name in small letters; one that comes twice and decides something is refused."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in found and name in ("host", "origin", "authorization", "content-length"):
            raise RequestError(400, "double_header", f"header {name}: found twice")
        found[name] = value.decode("latin-1")
    return found


def _without_port(host: str) -> str:
    """Empty where it is no host and port."""
    found = _HOST.fullmatch(host)
    return found[1] if found else ""


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
