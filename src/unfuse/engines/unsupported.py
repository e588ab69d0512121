"""The error of an engine that cannot run a model."""

from __future__ import annotations


class Unsupported(Exception):  # noqa: N818 - a finding, not a fault
    """The engine does not support the model; the text is the reason."""
