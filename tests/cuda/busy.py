"""Helpers of the tests beside it."""

from __future__ import annotations

import torch


def busy(milliseconds):
    """Keeps the device busy for about so long."""
    torch.cuda._sleep(int(milliseconds * 1.5e6))
