"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from unfuse.adapters.registry import DTYPES, check_choice, check_device, check_engine

_F = TypeVar("_F", bound=Callable[..., Any])


def placement(function: _F) -> _F:
    """``--device``, ``--dtype`` and ``--engine``."""
    for option in (
        click.option("--engine", default="auto", help="auto (graphed on CUDA), eager, graphed or vllm."),
        click.option("--dtype", default="auto", help="auto, bfloat16, float16 or float32."),
        click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
    ):
        function = option(function)
    return function


def check_placement(device: str, dtype: str, engine: str) -> None:
    """Refuses a typing error before anything is loaded."""
    check_device(device)
    check_choice("dtype", dtype, DTYPES)
    check_engine(engine)
