"""Texts and numbers, made ready to print."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return one line without control characters: a file or a model may write terminal codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def number(value: float | None, digits: int = 2) -> str:
    """Return a number, or a dash if nothing was measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """Return an interval, or a dash if there is none."""
    return "-" if low is None or high is None else f"{low:.{digits}f} .. {high:.{digits}f}"


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, and dots for the others."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
