"""Texts before which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Lets text through until one of the stops is complete; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.hit = False
        """Whether a stop was written; nothing after it is shown."""

    def feed(self, text: str) -> str:
        """What may be shown of the text so far and was not yet."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max(self._beginning(stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        """What was held back and turned out to be no stop."""
        shown, self._held = self._held, ""
        return shown

    def _beginning(self, stop: str) -> int:
        """Length of the longest end of what is held that a stop begins with."""
        return next((n for n in range(min(len(stop), len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)
