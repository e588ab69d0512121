"""The reason why there is no result, where one sample's failure must not end the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Stands in for a result that could not be computed."""

    reason: str
    """One line."""
