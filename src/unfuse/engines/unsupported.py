"""What an engine says of a model that it cannot run."""

from __future__ import annotations


class Unsupported(Exception):  # noqa: N818 - a finding, not a fault
    """This engine cannot run the model; the text says why."""
