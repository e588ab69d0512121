"""Processes forked after the imports, so that a test kills them during their work and not during their start."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.repeats import use_few_repeats

FORKS = multiprocessing.get_context("forkserver")
"""Context of processes forked from a server that has only imported the common modules."""
FORKS.set_forkserver_preload(
    ["unfuse.cli.bench", "unfuse.cli.run", "unfuse.adapters.eventgpt_loading", "tests.repeats", "tests.forked"]
)


PATIENCE_S = 300.0
"""Guard against hanging: longer than anything that a test waits for, on a busy machine too."""


def wait_for(true: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait until a condition holds; fail after minutes."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)


@contextmanager
def not_hanging(seconds: int = int(PATIENCE_S)) -> Iterator[None]:
    """Fail if the body takes minutes; no test of speed. Main thread only."""

    def ring(*_: object) -> None:
        raise AssertionError(f"it still runs after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Started:
    """A function in a process that leads a new process group; its output goes into files."""

    def __init__(self, function: Callable[..., object], *arguments: Any, folder: Path) -> None:
        self._printed = folder / "printed.txt", folder / "errors.txt"
        for path in self._printed:
            path.unlink(missing_ok=True)  # of an earlier process
        self._process: ForkServerProcess = FORKS.Process(
            target=_run, args=(function, arguments, self._printed, dict(os.environ), Path.cwd())
        )
        self._process.start()

    @property
    def out(self) -> str:
        """Output so far."""
        return self._printed[0].read_text() if self._printed[0].exists() else ""

    @property
    def errors(self) -> str:
        """Output on stderr so far."""
        return self._printed[1].read_text() if self._printed[1].exists() else ""

    def wait_until(self, condition: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
        """Wait for a condition, the end of the process or the time limit; return whether the process still runs."""
        deadline = time.monotonic() + seconds
        while not condition() and self._process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process only."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process and every process that it has started (SIGKILL)."""
        assert self._process.pid is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it does not lead its group yet, or has ended
            self._process.kill()
        self.wait()

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Return the exit code, negative for a signal."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "the process still runs"
        return self._process.exitcode


def unfuse(*arguments: str, folder: Path, hold: tuple[str, int] | None = None) -> Started:
    """Start the command ``unfuse`` with these arguments.

    Args:
        arguments: of the command.
        folder: holds the output.
        hold: a method as ``module:Class.method``, and a number of calls. The next call waits for ever, so that the test
            acts during the work.
    """
    return Started(_command, hold, *arguments, folder=folder)


def _run(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    printed: tuple[Path, Path],
    environment: dict[str, str],
    folder: Path,
) -> None:
    os.setpgid(0, 0)
    # A shell starts a background job with SIGINT ignored, and every child would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in zip((1, 2), printed, strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    function(*arguments)


def _command(hold: tuple[str, int] | None, *arguments: str) -> None:
    from unfuse.__main__ import main

    use_few_repeats(pytest.MonkeyPatch())  # for as long as this process lives
    if hold is not None:
        _hold(*hold)
    sys.argv = ["unfuse", *arguments]
    main()


def _hold(name: str, calls: int) -> None:
    module, _, qualified = name.partition(":")
    owner_name, _, method = qualified.partition(".")
    owner = getattr(importlib.import_module(module), owner_name)
    original, counted = getattr(owner, method), itertools.count()

    def wait(*given: Any, **named: Any) -> Any:
        while next(counted) >= calls:
            time.sleep(0.01)
        return original(*given, **named)

    setattr(owner, method, wait)
