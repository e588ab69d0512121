"""Stop texts: an answer ends before the first of them."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on until a stop text is complete, and buffers a possible beginning of a stop text."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._buffer = ""
        self.hit = False
        """Whether a stop text was found; no text follows it."""

    def feed(self, text: str) -> str:
        """Add text; return the text that can be sent."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        self._buffer += text
        found = [at for stop in self._stops if (at := self._buffer.find(stop)) >= 0]
        if found:
            self.hit = True
            passed, self._buffer = self._buffer[: min(found)], ""
            return passed
        end = len(self._buffer) - max(self._overlap(stop) for stop in self._stops)
        passed, self._buffer = self._buffer[:end], self._buffer[end:]
        return passed

    def end(self) -> str:
        """Return the buffered text at the end of an answer."""
        passed, self._buffer = self._buffer, ""
        return passed

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest suffix of the buffer that is a prefix of ``stop``."""
        return next((n for n in range(min(len(stop), len(self._buffer)), 0, -1) if self._buffer.endswith(stop[:n])), 0)
