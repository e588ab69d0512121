"""HTTP connections on which a client must also say what it wants within a time.

uvicorn times a connection only between requests: one that never sends its first head, or sends it a byte an hour, would
be held for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """uvicorn's, with a time for each request's head."""

    opening_s: ClassVar[float] = 10.0
    _opening: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time of the first head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Stops the time where a head has become whole, and starts it where one has begun."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_expecting()
        elif self._opening is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        """The time between requests is uvicorn's."""
        self._stop_expecting()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._stop_expecting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._opening = self.loop.call_later(self.opening_s, self._too_late)

    def _stop_expecting(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _too_late(self) -> None:
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()


def timed(opening_s: float) -> type[Any]:
    """The protocol with a time of its own."""
    return type("TimedProtocol", (TimedProtocol,), {"opening_s": opening_s})
