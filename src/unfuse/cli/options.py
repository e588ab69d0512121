"""Options that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

from unfuse.errors import InputError
from unfuse.feature_store import DEFAULT_MAX_BYTES, FeatureStore
from unfuse.loading import Placement
from unfuse.speculation.settings import SpeculationSettings, parse_draft_tokens

_GIB: Final = 2**30
_STORE_GIB: Final = DEFAULT_MAX_BYTES // _GIB
_MAX_GIB: Final = 2.0**30
_F = TypeVar("_F", bound=Callable[..., Any])


def placement_options(function: _F) -> _F:
    """Add ``--device``, ``--dtype`` and ``--engine``; the command is called with one ``placement``."""

    @functools.wraps(function)
    def command(*given: Any, device: str, dtype: str, engine: str, **more: Any) -> Any:
        return function(*given, placement=Placement(device, dtype, engine), **more)

    decorated: Any = command
    for option in (
        click.option("--engine", default="auto", help="auto (graphed on CUDA), eager, graphed or vllm."),
        click.option("--dtype", default="auto", help="auto, bfloat16, float16 or float32."),
        click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
    ):
        decorated = option(decorated)
    return cast("_F", decorated)


def speculation_options(function: _F) -> _F:
    """Add ``--speculate``, ``--draft-tokens`` and ``--history``; the command is called with one ``speculation``."""

    @functools.wraps(function)
    def command(*given: Any, speculate: str, draft_tokens: str, history: Path | None, **more: Any) -> Any:
        speculation = SpeculationSettings(
            method=speculate, draft_tokens=parse_draft_tokens(draft_tokens), history=history
        )
        return function(*given, speculation=speculation, **more)

    decorated: Any = command
    for option in (
        click.option(
            "--history", type=click.Path(path_type=Path), metavar="FILE", help="Also draft from the answers in FILE."
        ),
        click.option("--draft-tokens", default="auto", help="Most drafted tokens of a decode pass: auto, or 1 to 15."),
        click.option(
            "--speculate", default="auto", help="Draft tokens from: history, ngram, off, or auto (history if it pays)."
        ),
    ):
        decorated = option(decorated)
    return cast("_F", decorated)


def store_options(function: _F) -> _F:
    """Add ``--store`` and ``--store-gib``."""
    for option in (
        click.option("--store-gib", type=float, default=None, help=f"Maximum size of --store; default: {_STORE_GIB}."),
        click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="Store encoded scenes in DIR."),
    ):
        function = option(function)
    return function


def time_unit_option(function: _F) -> _F:
    """Add ``--time-unit``."""
    return click.option(
        "--time-unit",
        type=click.Choice(("s", "ms", "us", "ns")),
        help="Unit of the times in a text, .npy or .npz file; default: what the file says, else decided and printed.",
    )(function)


def open_store(store: Path | None, store_gib: float | None) -> FeatureStore | None:
    """Open the store of ``store_options``, before anything is loaded.

    Raises:
        InputError: the folder cannot be a store, or the size has no store or is out of range.
    """
    if store is None:
        if store_gib is not None:
            raise InputError("--store-gib", found="no --store", expected="the folder whose size it is")
        return None
    if store_gib is not None and not 0 < store_gib < _MAX_GIB:
        raise InputError("--store-gib", found=store_gib, expected="more than 0 GiB")
    return FeatureStore(store, None if store_gib is None else max(1, round(store_gib * _GIB)))
