"""The layer around the application, with neither a socket nor an application behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from unfuse.serving.guard import Guard
from unfuse.serving.settings import MIB, ServeSettings

OPENING_S = 1000.0
SETTINGS = ServeSettings(max_upload_bytes=MIB, opening_s=OPENING_S, timeout_s=5 * OPENING_S)
ROOM = 4 * (MIB + MIB)


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a clock that a test advances."""

    passed_s = 0.0

    def time(self) -> float:
        return super().time() + self.passed_s


def passes(seconds: float) -> None:
    """Lets time pass for the loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    loop.passed_s += seconds


async def nothing() -> None:
    """Waits for ever, until all of the time that anybody has is over."""
    passes(OPENING_S + 1)
    await asyncio.Event().wait()


def run_in_loop(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(work)


class Request:
    """One through the guard."""

    def __init__(
        self, parts: Sequence[bytes | None], *, path: str = "/v1/files", headers: dict[str, str] | None = None
    ):
        """None among the parts: nothing more comes."""
        self._parts = list(parts)
        self.sent: list[dict[str, Any]] = []
        given = {"host": "127.0.0.1:8000", **(headers or {})}
        self.scope: dict[str, Any] = {
            "type": "http",
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }

    async def receive(self) -> dict[str, Any]:
        if not self._parts:
            await self.nothing()
        part = self._parts.pop(0)
        if part is None:
            await self.nothing()
        return {"type": "http.request", "body": part, "more_body": bool(self._parts)}

    async def nothing(self) -> None:
        await nothing()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def code(self) -> str:
        return str(json.loads(b"".join(m.get("body", b"") for m in self.sent))["error"]["code"])


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """Reads all of the body, turns what goes wrong into an answer of its own, as frameworks do, and answers."""
    try:
        while (await receive()).get("more_body"):
            pass
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"oh"})
        raise
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def run(request: Request, app: Any = reading, settings: ServeSettings = SETTINGS) -> tuple[Guard, list[int]]:
    statuses: list[int] = []
    guard = Guard(app, settings, lambda path, status: statuses.append(status))
    run_in_loop(guard(request.scope, request.receive, request.send))
    assert guard._in_flight == 0, "what is over is not counted any more"
    return guard, statuses


def test_a_request_passes() -> None:
    request = Request([b"a" * 1000, b"b" * 1000])
    assert run(request)[1] == [200]
    names = [name for name, _ in request.sent[0]["headers"]]
    assert b"x-content-type-options" in names
    assert b"content-security-policy" in names


@pytest.mark.parametrize(
    ("parts", "headers", "code"),
    [
        ([b"x"], {"content-length": str(10 * MIB)}, "too_large"),
        ([b"x" * MIB, b"x" * MIB], {}, "too_large"),
        ([b"x", None], {}, "too_slow"),
        ([], {}, "too_slow"),
        ([b""], {"host": "evil.example"}, "wrong_host"),
        ([b""], {"origin": "https://evil.example"}, "foreign_origin"),
    ],
)
def test_refusals_have_the_guard_s_body(parts: Any, headers: dict[str, str], code: str) -> None:
    request = Request(parts, headers=headers)
    _, statuses = run(request)
    assert request.code == code
    assert statuses == [request.status] != [500]
    assert (b"connection", b"close") in request.sent[0]["headers"]


def test_an_error_of_the_application_is_raised() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Request([b""]), failing)


def test_all_bodies_together_are_bounded() -> None:
    """Several large bodies wait for their last bytes; one more is refused, and when they are gone it is not."""

    waiting = []

    class Stalled(Request):
        async def nothing(self) -> None:
            waiting.append(self)
            await asyncio.Event().wait()

    async def work() -> None:
        guard = Guard(reading, SETTINGS, lambda *_: None)
        part = b"x" * (MIB + 1000)
        stalled = [Stalled([part, None]) for _ in range(ROOM // len(part))]
        tasks = [asyncio.create_task(guard(each.scope, each.receive, each.send)) for each in stalled]
        while len(waiting) < len(stalled):
            await asyncio.sleep(0)
        late = Request([part])
        await guard(late.scope, late.receive, late.send)
        assert late.status == 429
        assert late.code == "too_much_under_way"
        passes(OPENING_S + 1)
        await asyncio.gather(*tasks)
        assert {each.code for each in stalled} == {"too_slow"}
        again = Request([part])
        await guard(again.scope, again.receive, again.send)
        assert again.status == 200

    run_in_loop(work())


def test_a_response_that_is_not_read_is_dropped() -> None:
    ended = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.append(True)

    class Stalled(Request):
        async def send(self, message: dict[str, Any]) -> None:
            if len(self.sent) == 3:
                await nothing()
            await super().send(message)

    run(Stalled([b""]), endless)
    assert ended == [True]


def test_any_host_is_accepted_beyond_loopback() -> None:
    """Beyond loopback a proxy may call the server by any name; only the token is checked."""
    settings = ServeSettings(host="0.0.0.0", token="0123456789abcdef")
    headers = {"host": "models.example", "authorization": "bearer 0123456789abcdef"}
    request = Request([b""], headers=headers)
    run(request, settings=settings)
    assert request.status == 200
    refused = Request([b""], headers={"host": "models.example"})
    run(refused, settings=settings)
    assert refused.status == 401
