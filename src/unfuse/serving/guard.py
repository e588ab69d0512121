"""ASGI middleware that checks requests and limits their size and time.

Before a byte of a body is read, it checks the Host header (the DNS name of another site may point at this machine), the
Origin header (a page of another site may send forms here) and the token. Then it limits size and time of each body and
the size of all bodies together, and it drops a response that the client does not read.
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
"""Paths without a token: the page contains no data, and the others report up or down."""
_MULTIPART_ROOM: Final = 64 << 10
_JSON_ROOM: Final = 1 * MIB
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 16 * MIB
_MAX_LARGE_BODIES: Final = 4
"""Number of largest bodies that may be in flight together."""
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_DENY_ALL: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d*)?", re.ASCII)
_NO_STORE: Final = (b"cache-control", b"no-store")


class SlowClientError(Exception):
    """The client does not read the response."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: App, settings: ServeSettings, observe: Callable[[str, int], None]):
        """Wrap an application.

        Args:
            app: the application.
            settings: limits.
            observe: called with the path and status of every response.
        """
        self._app = app
        self._settings = settings
        self._observe = observe
        self._token = None if settings.token is None else _digest(settings.token.encode())
        self._local_only = is_loopback(settings.host)
        self._in_flight = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self, receive, self._max_bytes(scope["path"]), self._settings)
        response = _Response(send, body, self._settings.opening_s, lambda status: self._observe(scope["path"], status))
        try:
            try:
                headers = _headers(scope)
                self._check(scope, headers)
                body.expect(headers)
                await self._app(scope, body.receive, response.send)
            except RequestError as error:
                body.failure = error
            if body.failure is not None and not response.started:
                await response.refuse(body.failure)
        except SlowClientError:
            pass
        finally:
            self._in_flight -= body.size

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
            # Digests: the time of the comparison reveals neither length nor content of the token.
            right = hmac.compare_digest(_digest(given.strip().encode("latin-1", "replace")), self._token)
            if scheme.lower() != "bearer" or not right:
                raise RequestError(
                    401,
                    "invalid_token",
                    "found no valid token, expected Authorization: Bearer TOKEN",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _max_bytes(self, path: str) -> int:
        if path == UPLOADS:
            return self._settings.max_upload_bytes + _MULTIPART_ROOM
        return self._settings.max_inline_bytes * 4 // 3 + _JSON_ROOM

    def count(self, size: int) -> None:
        """Count bytes of a body in flight.

        Raises:
            RequestError: the bodies of all requests are too large together.
        """
        if self._in_flight + size > _MAX_LARGE_BODIES * (self._settings.max_upload_bytes + _JSON_ROOM):
            raise RequestError(
                429, "too_much_under_way", "too many bytes are being uploaded at once", headers={"Retry-After": "5"}
            )
        self._in_flight += size


class _Body:
    """A request's body while it arrives."""

    def __init__(self, guard: Guard, receive: Receive, max_bytes: int, settings: ServeSettings):
        self.size = 0
        self.ended = False
        self.failure: RequestError | None = None
        """Reason why the body is refused; it replaces the application's own response."""
        self._guard = guard
        self._receive = receive
        self._max_bytes = max_bytes
        self._gap_s = settings.opening_s
        self._deadline = time.monotonic() + settings.timeout_s

    def expect(self, headers: Mapping[str, str]) -> None:
        """Check the announced length."""
        length = headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Return the next part, within the limits of size and time."""
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
            if self.size + part > self._max_bytes:
                raise self._too_large()
            self._guard.count(part)
            self.size += part
        return message

    async def linger(self) -> None:
        """Drop a limited rest of the body: a client that only writes would never read the response."""
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
        return RequestError(413, "too_large", f"the request: expected at most {self._max_bytes} bytes")


class _Response:
    """A response while it is sent."""

    def __init__(self, send: Send, body: _Body, patience_s: float, observe: Callable[[int], None]):
        self.started = False
        self._send = send
        self._body = body
        self._patience_s = patience_s
        self._observe = observe

    async def send(self, message: Message) -> None:
        """Send a message of the application."""
        if self.started or self._body.failure is None:
            await self._out(message)

    async def _out(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._observe(message["status"])
            names = {name.lower() for name, _ in message["headers"]}
            more = [header for header in (*_HEADERS, _DENY_ALL, _NO_STORE) if header[0] not in names]
            message = {**message, "headers": [*message["headers"], *more]}
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(message)
        except TimeoutError:
            raise SlowClientError from None

    async def refuse(self, error: RequestError) -> None:
        """Send an error, and close the connection after a client that still sends has read it."""
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
    """Return headers by lower-case name; a duplicate of a checked header is refused."""
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in headers and name in ("host", "origin", "authorization", "content-length"):
            raise RequestError(400, "double_header", f"header {name}: found twice")
        headers[name] = value.decode("latin-1")
    return headers


def _without_port(host: str) -> str:
    """Return the host of a Host header; empty if the header is malformed."""
    match = _HOST.fullmatch(host)
    return match[1] if match else ""


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
