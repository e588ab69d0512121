"""``unfuse store``: describe, check and clear a folder of encoded scenes."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console

from unfuse.feature_store import FeatureStore, StoreInfo
from unfuse.report import print_line, printable


@click.group(short_help="Inspect a folder of encoded scenes.")
def store() -> None:
    """Inspect, check or clear a folder of encoded scenes (option --store of other commands)."""


@store.command(short_help="Show the number of scenes and their size.")
@click.argument("folder", type=click.Path(path_type=Path))
def info(folder: Path) -> int:
    """Show the number of scenes in FOLDER, their size and the time of their last use."""
    found = FeatureStore(folder, make=False).info()
    console = Console(highlight=False, soft_wrap=True)
    print_line(console, f"{_contents(found)} in {printable(str(folder))}")
    if found.least_recent_use is not None and found.most_recent_use is not None:
        first, last = map(_when, (found.least_recent_use, found.most_recent_use))
        print_line(console, f"last used between {first} and {last}")
    if found.temporary_bytes:
        print_line(console, f"{_size(found.temporary_bytes)} being written, or left by a process that was killed")
    return 0


@store.command(short_help="Read every scene and list damaged scenes.")
@click.argument("folder", type=click.Path(path_type=Path))
def check(folder: Path) -> int:
    """Read every scene in FOLDER and list damaged scenes; exit code 1 if a scene is damaged."""
    opened = FeatureStore(folder, make=False)
    console = Console(highlight=False, soft_wrap=True)
    total = damaged = 0
    for path, fault in opened.check():
        total += 1
        if fault is not None:
            damaged += 1
            print_line(console, printable(f"{path}: {fault}"))
    print_line(console, f"{_scenes(total)}, {damaged} damaged")
    return 1 if damaged else 0


@store.command(short_help="Remove every scene; the folder stays.")
@click.argument("folder", type=click.Path(path_type=Path))
def clear(folder: Path) -> int:
    """Remove every scene from FOLDER; the folder stays."""
    before = FeatureStore(folder, make=False).clear()
    print_line(Console(highlight=False, soft_wrap=True), f"{_contents(before)} removed from {printable(str(folder))}")
    return 0


def _contents(found: StoreInfo) -> str:
    return f"{_scenes(found.entries)}, {_size(found.entry_bytes)}"


def _scenes(count: int) -> str:
    return "1 scene" if count == 1 else f"{count} scenes"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
