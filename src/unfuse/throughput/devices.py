"""Several devices of one host: a process each, and scenes shared out as each has room for them.

A device is given a scene when it takes up one of its own, so that a faster one gets more. By answers it would not do:
those of a full batch come together, and the device whose came first would be given all that is left. The last scenes
are shared out few at a time.

A device whose process died is started again. What it had in hand is tried again at the end, few scenes together and
then each alone: so the one that processes die of is found, fails by name, and takes no other with it.
"""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final, Self

from unfuse.errors import DeviceError
from unfuse.loading import check_devices
from unfuse.throughput.device import DeviceFacts, DeviceJob, DeviceResult
from unfuse.throughput.device_process import ENDED
from unfuse.throughput.flow import ENCODE_TOGETHER, Answer, Begun
from unfuse.throughput.scenes import Scene
from unfuse.throughput.wire import Closed, receive, send
from unfuse.unavailable import Unavailable

_CUDA: Final = re.compile(r"cuda:(\d+)")
_FRUITLESS: Final = 3
"""Processes in a row that ended without an answer: it is the device's fault then, and it is not started again."""
_SUSPECTS: Final = 16
"""Scenes of a process that died that are tried again together: one more start, and most of them lose no time."""
_FEW: Final = ENCODE_TOGETHER
"""Scenes that a device has waiting, at most, when few are left."""
_GRACE_S: Final = 10.0
"""For a process to end once it has said why."""


def find_devices(text: str) -> tuple[str, ...]:
    """Names of the devices that are meant.

    Args:
        text: ``auto`` for every GPU there is, or the CPU where there is none; a number of GPUs; or names.

    Raises:
        DeviceError: no such devices, or not so many GPUs here.
    """
    check_devices(text)
    if text != "auto" and not text.isdigit():
        return tuple(text.split(","))
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)
    if int(text) > count:
        raise DeviceError("devices", found=f"{count} GPUs", expected=text, fix="ask for fewer, or --device cpu")
    return tuple(f"cuda:{i}" for i in range(int(text)))


@dataclass(slots=True)
class _Child:
    """One device's process, as its parent sees it."""

    name: str
    process: subprocess.Popen[bytes]
    place: socket.socket
    given: dict[int, Scene] = field(default_factory=dict)
    """Scenes by number that it has and that are not answered in full."""
    waiting: set[int] = field(default_factory=set)
    """Of these, the ones that it has not taken up."""
    facts: DeviceFacts | None = None
    """None until it is ready."""
    result: DeviceResult | None = None
    alive: bool = True
    suspects: bool = False
    """What it has was another's when that died."""
    fruitless: int = 1
    """Processes of this device in a row without an answer, if this one gives none."""


@dataclass(slots=True)
class _Work:
    """Scenes by number that no process has."""

    left: deque[tuple[int, Scene]]
    suspects: deque[list[tuple[int, Scene]]] = field(default_factory=deque)
    """Those that a process had when it died, in groups: beside others, it would not be known whose fault it is."""

    def __bool__(self) -> bool:
        return bool(self.left or self.suspects)


class DeviceProcesses:
    """Devices that are ready to answer. A context manager; leaving it ends them all."""

    def __init__(self, job: DeviceJob, devices: tuple[str, ...]):
        """Starts one process a device and waits until each has loaded the model.

        ``deaths`` says of each process that died what became of its device, a sentence each.

        Args:
            job: what each is to do, whatever device it names.
            devices: as ``find_devices`` gives them.

        Raises:
            DeviceError: a device's process did not come so far; says which and why.
        """
        self.deaths: tuple[str, ...] = ()
        self._job = replace(job, devices=len(devices))
        self._said: queue.SimpleQueue[tuple[_Child, Any]] = queue.SimpleQueue()
        self._children: list[_Child] = []
        self._threads: list[threading.Thread] = []
        try:
            for name in devices:
                self._children.append(_start(name, self._job))
            for child in self._children:
                self._hear(child)
            while any(child.facts is None for child in self._children):
                self._ready(*self._said.get())
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> DeviceFacts:
        """Of the first; all have the same model. What only others note of themselves is there under their name."""
        facts = self._children[0].facts
        assert facts is not None
        known = {child.name: child.facts for child in self._children if child.facts}
        notes = list(facts.model["notes"])
        for name, each in known.items():
            notes += [f"device {name}: {note}" for note in each.model["notes"] if note not in facts.model["notes"]]
        workers = sum(each.workers for each in known.values())
        return replace(facts, model=facts.model | {"notes": notes}, workers=workers)

    def answer(self, scenes: list[Scene], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        """Answers all scenes; see ``DeviceRunner.answer``.

        Raises:
            DeviceError: no device is left.
        """
        work = _Work(deque(enumerate(scenes)))
        where = {asked.sample_id: number for number, scene in enumerate(scenes) for asked in scene.asked}
        self._share(work)
        while work or any(child.given for child in self._children):
            child, said = self._said.get()
            if isinstance(said, Begun):
                child.waiting.discard(where[said.sample_id])
            elif isinstance(said, Answer):
                emit(said)
                _tick_off(child, where[said.asked.sample_id], said.asked.sample_id)
            elif isinstance(said, DeviceFacts):
                child.facts = said
            else:
                self._lost(child, said, work, emit)
            self._share(work)
        ready = self._ready_ones
        for child in ready:
            with suppress(Closed):
                send(child.place, ENDED)
        while any(child.alive and child.result is None for child in ready):
            child, said = self._said.get()
            if isinstance(said, DeviceResult):
                child.result = said
            elif not isinstance(said, (DeviceFacts, Begun)):  # facts are of one that was started again in vain
                self._lost(child, said, work, emit)
        return [child.result for child in self._children if child.result is not None]

    def close(self) -> None:
        """Ends all processes."""
        for child in self._children:
            child.process.kill()
            child.process.wait()
            with suppress(OSError):
                child.place.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for child in self._children:
            child.place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _ready_ones(self) -> list[_Child]:
        return [child for child in self._children if child.alive and child.facts is not None]

    def _hear(self, child: _Child) -> None:
        thread = threading.Thread(target=self._listen, args=(child,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _listen(self, child: _Child) -> None:
        """Passes on what a process says; None at its end, whatever ends it."""
        try:
            with suppress(Closed):
                while True:
                    self._said.put((child, receive(child.place)))
        finally:
            self._said.put((child, None))

    def _ready(self, child: _Child, said: Any) -> None:
        if isinstance(said, DeviceFacts):
            child.facts = said
            return
        reason = said.reason if isinstance(said, Unavailable) else f"its process ended ({_end(child)})"
        raise DeviceError(f"device {child.name}: {reason}")

    def _share(self, work: _Work) -> None:
        """Gives scenes to those that soon have room for them, to the one with the fewest waiting first."""
        ready = self._ready_ones
        while work.left and ready:
            child = min(ready, key=lambda each: len(each.waiting) / _ahead(each))
            if len(child.waiting) >= min(_ahead(child), max(_FEW, len(work.left) // (2 * len(ready)))):
                return
            _give(child, *work.left.popleft())
        for child in ready:
            if work.suspects and not work.left and not child.given:
                child.suspects = True
                for number, scene in work.suspects.popleft():
                    _give(child, number, scene)

    def _lost(self, child: _Child, said: Any, work: _Work, emit: Callable[[Answer], None]) -> None:
        """A process is gone: what it had is tried again or has failed, and its device is started again."""
        if not child.alive or child.result is not None:
            return
        child.alive = False
        code = _end(child)
        reason = said.reason if isinstance(said, Unavailable) else code
        had = list(child.given.items())
        child.given, child.waiting = {}, set()
        if child.suspects and len(had) == 1:
            for asked in had[0][1].asked:
                emit(Answer(asked=asked, media_sha256="", error=f"a device's process died of it again ({reason})"))
        else:
            together = 1 if child.suspects else _SUSPECTS
            work.suspects.extend(had[at : at + together] for at in range(0, len(had), together))
        if work and child.facts is not None and child.fruitless < _FRUITLESS:
            again = _start(child.name, self._job)
            again.fruitless = child.fruitless + 1
            self._children.append(again)
            self._hear(again)
            what = "it was started again, and its unfinished samples tried again"
        else:
            what = "its unfinished samples went to the others" if work else "nothing was left to do"
        self.deaths += (f"device {child.name} was lost ({reason}); {what}",)
        if work and not any(each.alive for each in self._children):
            raise DeviceError(
                f"device {child.name}", found=f"its process ended ({reason}), and no other is left",
                expected="one that answers", fix="what is answered is kept: go on with --resume",
            )  # fmt: skip


def _give(child: _Child, number: int, scene: Scene) -> None:
    child.given[number] = scene
    child.waiting.add(number)
    with suppress(Closed):  # its end is heard of by the thread that listens
        send(child.place, scene)


def _tick_off(child: _Child, number: int, sample_id: str) -> None:
    rest = child.given[number].without([sample_id])
    child.waiting.discard(number)
    child.fruitless = 0
    if rest.asked:
        child.given[number] = rest
    else:
        del child.given[number]


def _ahead(child: _Child) -> int:
    """Scenes that it is given beyond those it has taken up: as many as its workers and queues may hold."""
    assert child.facts is not None
    return child.facts.ahead


def _start(name: str, job: DeviceJob) -> _Child:
    """Starts a device's process, which sees no other GPU than its own."""
    place, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    device = name
    if found := _CUDA.fullmatch(name):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        index = int(found[1])
        names = visible.split(",") if visible else []
        environment["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else str(index)
        device = "cuda"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "unfuse.throughput.device_process", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            env=environment,
            process_group=0,  # a key at the terminal is for this process, also while that one still imports
        )
    with suppress(Closed):
        send(place, replace(job, device=device))
    return _Child(name, process, place)


def _end(child: _Child) -> str:
    """How its process ended, which is over then: by force where it does not end by itself."""
    try:
        code = child.process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.process.kill()
        code = child.process.wait()
    return f"signal {-code}" if code < 0 else f"exit code {code}"
