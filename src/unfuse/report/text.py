"""Texts from files and models, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters: a file or a model may write terminal codes."""
    return "".join(c if c.isprintable() else " " for c in text)
