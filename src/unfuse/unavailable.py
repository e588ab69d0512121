"""Reason for a missing result. It is a value and no exception, so that one failure does not end the other samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Stands in for a result that could not be computed."""

    reason: str
    """One line."""
