"""Run ``python -m module`` in a process forked after the imports, which take most of the time of a start.

``Popen`` replaces ``subprocess.Popen`` where a test, or the tested code, starts such a process. Tests that depend on a
limited address space, interpreter options or modules that are not yet imported start a new interpreter.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType, TracebackType
from typing import IO, Any, Self

import pytest

from tests.started import FORKS


class _Passed:
    """A file descriptor that is passed to the process."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)  # type: ignore[no-untyped-call]


def _received(passed: Any) -> int:
    number: int = passed.detach()
    return number


class Popen:
    """Replacement of ``subprocess.Popen`` for ``[sys.executable, "-m", module, ...]``, a script or ``-c code``."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        text: bool = False,
        process_group: int | None = None,
        start_new_session: bool = False,
        prepare: Callable[[], object] | None = None,
    ):
        executable, *rest = map(os.fspath, command)
        assert executable == sys.executable
        self._text = text
        passed: dict[int, _Passed] = {number: _Passed(number) for number in pass_fds}
        ours: list[int] = []  # closed once the process has them
        streams: list[IO[Any] | None] = []
        for number, given in enumerate((stdin, stdout, stderr)):
            file: IO[Any] | None = None
            if given == subprocess.PIPE:
                read, write = os.pipe()
                theirs, mine = (read, write) if number == 0 else (write, read)
                file = os.fdopen(mine, ("w" if number == 0 else "r") + ("" if text else "b"), -1 if text else 0)
                ours.append(theirs)
            elif given == subprocess.DEVNULL:
                theirs = os.open(os.devnull, os.O_RDWR)
                ours.append(theirs)
            elif given == subprocess.STDOUT:
                theirs = passed[1].number
            else:
                theirs = number if given is None else given if isinstance(given, int) else given.fileno()
            passed[number] = _Passed(theirs)
            streams.append(file)
        self.stdin, self.stdout, self.stderr = streams
        environment = dict(os.environ if env is None else env)
        folder = Path.cwd() if cwd is None else Path(cwd)
        self._process = FORKS.Process(
            target=_run,
            args=(rest, passed, environment, folder, process_group is not None or start_new_session, prepare),
        )
        self._process.start()
        for number in ours:
            os.close(number)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, as ``poll`` returns it."""
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise ``subprocess.TimeoutExpired`` if the process still runs."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def run(
    command: Sequence[str | os.PathLike[str]], *, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run as ``subprocess.run``, with the output captured as text."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options).wait(timeout)
        outputs = []
        for file in (out, err):
            file.seek(0)
            outputs.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *outputs)


def fork_instead(
    patch: pytest.MonkeyPatch,
    *modules: ModuleType,
    prepare: Callable[[], object] | None = None,
    programs: tuple[str, ...] = ("",),
) -> None:
    """Make these modules start forked processes.

    Args:
        patch: restores the modules.
        modules: import ``subprocess``.
        prepare: called first in each process.
        programs: prefixes of the names of modules that run in forked processes; others run in a new interpreter.
    """

    def run_captured(command: Sequence[str], *, capture_output: bool, text: bool, check: bool, **options: Any) -> Any:
        assert (capture_output, text, check) == (True, True, False)
        return run(command, prepare=prepare, **options)

    def started(command: Sequence[str], **options: Any) -> Any:
        if command[1] == "-m" and not command[2].startswith(programs):
            return subprocess.Popen(command, **options)
        return Popen(command, prepare=prepare, **options)

    forking = ModuleType("subprocess")
    forking.__dict__.update(subprocess.__dict__, Popen=started, run=run_captured)
    for module in modules:
        patch.setattr(module, "subprocess", forking)


def fork_pools(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Fork the processes of pools in these modules, which import ``multiprocessing`` and request spawned processes."""
    forking = ModuleType("multiprocessing")
    forking.__dict__.update(multiprocessing.__dict__, get_context=lambda _: FORKS)
    for module in modules:
        patch.setattr(module, "multiprocessing", forking)


def _run(
    arguments: list[str],
    passed: dict[int, int],
    environment: dict[str, str],
    folder: Path,
    own_group: bool,
    prepare: Callable[[], object] | None,
) -> None:
    if own_group:
        os.setpgid(0, 0)
    # A shell starts a background job with SIGINT ignored, and every child would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (0, 1, 2):
        os.dup2(passed[number], number)
        os.close(passed.pop(number))
    for number, given in passed.items():  # those beside are named by an argument
        arguments[arguments.index(str(number))] = str(given)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each not in sys.path]
    try:
        if prepare is not None:
            prepare()
        if arguments[0] == "-m":
            sys.argv = [arguments[1], *arguments[2:]]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv = list(arguments)
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
