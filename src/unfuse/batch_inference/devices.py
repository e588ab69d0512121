"""Several devices of one host: one process each, and scenes distributed as each has room for them.

A device gets a new scene when it starts a scene, so that a faster device gets more scenes. Scenes are not distributed
by answers: the answers of a full batch come together, and the first device to answer would get all scenes that are
left. The last scenes are distributed a few at a time.

A device's process that dies is started again. Its unfinished scenes go into quarantine: they are tried again at the
end, a few together and then each alone. So a scene that crashes processes is found and fails by name, and no other
scene fails with it.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from unfuse.batch_inference.answer import Answer, SceneStarted
from unfuse.batch_inference.device import DeviceFacts, DeviceJob, DeviceResult
from unfuse.batch_inference.device_process import ENDED
from unfuse.batch_inference.flow import ENCODE_TOGETHER
from unfuse.batch_inference.scenes import SceneQuestions
from unfuse.batch_inference.wire import receive, send
from unfuse.errors import DeviceError
from unfuse.loading import check_devices
from unfuse.processes import Child, ClosedError, exit_status
from unfuse.unavailable import Unavailable

_CUDA: Final = re.compile(r"cuda:(\d+)")
_MAX_CONSECUTIVE_CRASHES: Final = 3
"""Processes in a row without an answer: the device itself is faulty, and is not started again."""
_QUARANTINED_TOGETHER: Final = 16
"""Scenes of a dead process that are tried again together: one more start, and most of them lose no time."""
_LAST_WAITING: Final = ENCODE_TOGETHER
"""Scenes waiting at a device, at most, when few are left."""
_GRACE_S: Final = 10.0
"""For a process to exit after its last message."""


def find_devices(text: str) -> tuple[str, ...]:
    """Return the names of devices.

    Args:
        text: ``auto`` for every GPU, or the CPU if there is none; a number of GPUs; or names.

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
class _Device:
    """One device's process, as its parent sees it."""

    name: str
    child: Child
    assigned: dict[int, SceneQuestions] = field(default_factory=dict)
    """Scenes by number that are not answered in full."""
    waiting: set[int] = field(default_factory=set)
    """Numbers of assigned scenes that the process has not started."""
    facts: DeviceFacts | None = None
    """None until the process is ready."""
    result: DeviceResult | None = None
    alive: bool = True
    quarantined: bool = False
    """Whether the assigned scenes come from the quarantine."""
    consecutive_crashes: int = 1
    """Processes of this device in a row without an answer, if this process gives none."""


@dataclass(slots=True)
class _Work:
    """Scenes by number that are assigned to no process."""

    left: deque[tuple[int, SceneQuestions]]
    quarantine: deque[list[tuple[int, SceneQuestions]]] = field(default_factory=deque)
    """Groups of scenes that a process had when it died; beside other scenes, the faulty one would not be found."""

    def __bool__(self) -> bool:
        return bool(self.left or self.quarantine)


class DeviceProcesses:
    """Devices that are ready to answer. A context manager; leaving it ends all processes."""

    def __init__(self, job: DeviceJob, devices: tuple[str, ...]):
        """Start one process for each device and wait until each has loaded the model.

        ``deaths`` has one sentence for each process that died, about the state of its device.

        Args:
            job: for every device; the device that it names is ignored.
            devices: as ``find_devices`` returns them.

        Raises:
            DeviceError: a device's process did not become ready; names the device and the reason.
        """
        self.deaths: tuple[str, ...] = ()
        self._job = replace(job, devices=len(devices))
        self._messages: queue.SimpleQueue[tuple[_Device, Any]] = queue.SimpleQueue()
        self._devices: list[_Device] = []
        self._threads: list[threading.Thread] = []
        try:
            for name in devices:
                self._devices.append(_start(name, self._job))
            for device in self._devices:
                self._listen(device)
            while any(device.facts is None for device in self._devices):
                self._set_facts(*self._messages.get())
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> DeviceFacts:
        """Facts of the first device; all have the same model. Notes that only others have come with their names."""
        facts = self._devices[0].facts
        assert facts is not None
        by_name = {device.name: device.facts for device in self._devices if device.facts}
        notes = list(facts.model["notes"])
        for name, each in by_name.items():
            notes += [f"device {name}: {note}" for note in each.model["notes"] if note not in facts.model["notes"]]
        workers = sum(each.workers for each in by_name.values())
        return replace(facts, model=facts.model | {"notes": notes}, workers=workers)

    def answer(self, scenes: list[SceneQuestions], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        """Answer all scenes; see ``DeviceRunner.answer``.

        Raises:
            DeviceError: no device is left.
        """
        work = _Work(deque(enumerate(scenes)))
        numbers = {each.question_id: number for number, scene in enumerate(scenes) for each in scene.questions}
        self._distribute(work)
        while work or any(device.assigned for device in self._devices):
            device, message = self._messages.get()
            if isinstance(message, SceneStarted):
                device.waiting.discard(numbers[message.question_id])
            elif isinstance(message, Answer):
                emit(message)
                _mark_answered(device, numbers[message.question.question_id], message.question.question_id)
            elif isinstance(message, DeviceFacts):
                device.facts = message
            else:
                self._replace(device, message, work, emit)
            self._distribute(work)
        ready = self._ready_devices
        for device in ready:
            with suppress(ClosedError):
                send(device.child.channel, ENDED)
        while any(device.alive and device.result is None for device in ready):
            device, message = self._messages.get()
            if isinstance(message, DeviceResult):
                device.result = message
            # Facts come from a process that is no longer needed.
            elif not isinstance(message, (DeviceFacts, SceneStarted)):
                self._replace(device, message, work, emit)
        return [device.result for device in self._devices if device.result is not None]

    def close(self) -> None:
        """End all processes."""
        for device in self._devices:
            device.child.kill()
        for thread in self._threads:
            thread.join()
        for device in self._devices:
            device.child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _ready_devices(self) -> list[_Device]:
        return [device for device in self._devices if device.alive and device.facts is not None]

    def _listen(self, device: _Device) -> None:
        thread = threading.Thread(target=self._receive, args=(device,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _receive(self, device: _Device) -> None:
        """Queue the messages of a process, then None when it ends for any reason."""
        try:
            with suppress(ClosedError):
                while True:
                    self._messages.put((device, receive(device.child.channel)))
        finally:
            self._messages.put((device, None))

    def _set_facts(self, device: _Device, message: Any) -> None:
        if isinstance(message, DeviceFacts):
            device.facts = message
            return
        if isinstance(message, Unavailable):
            raise DeviceError(f"device {device.name}: {message.reason}")
        raise DeviceError(f"device {device.name}: its process ended ({exit_status(device.child.end(_GRACE_S))})")

    def _distribute(self, work: _Work) -> None:
        """Assign scenes to the devices that soon have room for them, fewest waiting scenes first."""
        ready = self._ready_devices
        while work.left and ready:
            device = min(ready, key=lambda each: len(each.waiting) / _ahead(each))
            if len(device.waiting) >= min(_ahead(device), max(_LAST_WAITING, len(work.left) // (2 * len(ready)))):
                return
            _assign(device, *work.left.popleft())
        for device in ready:
            if work.quarantine and not work.left and not device.assigned:
                device.quarantined = True
                for number, scene in work.quarantine.popleft():
                    _assign(device, number, scene)

    def _replace(self, device: _Device, message: Any, work: _Work, emit: Callable[[Answer], None]) -> None:
        """Handle a process that is gone: its scenes are tried again or have failed, and its device is started again."""
        if not device.alive or device.result is not None:
            return
        device.alive = False
        status = exit_status(device.child.end(_GRACE_S))
        reason = message.reason if isinstance(message, Unavailable) else status
        unfinished = list(device.assigned.items())
        device.assigned, device.waiting = {}, set()
        if device.quarantined and len(unfinished) == 1:
            failure = Unavailable(f"a device's process died of it again ({reason})")
            for question in unfinished[0][1].questions:
                emit(Answer(question=question, generation=failure))
        else:
            together = 1 if device.quarantined else _QUARANTINED_TOGETHER
            work.quarantine.extend(unfinished[at : at + together] for at in range(0, len(unfinished), together))
        if work and device.facts is not None and device.consecutive_crashes < _MAX_CONSECUTIVE_CRASHES:
            again = _start(device.name, self._job)
            again.consecutive_crashes = device.consecutive_crashes + 1
            self._devices.append(again)
            self._listen(again)
            outcome = "it was started again, and its unfinished samples tried again"
        else:
            outcome = "its unfinished samples went to the others" if work else "nothing was left to do"
        self.deaths += (f"device {device.name} was lost ({reason}); {outcome}",)
        if work and not any(each.alive for each in self._devices):
            raise DeviceError(
                f"device {device.name}", found=f"its process ended ({reason}), and no other is left",
                expected="a device that answers", fix="the answers so far are stored: go on with --resume",
            )  # fmt: skip


def _assign(device: _Device, number: int, scene: SceneQuestions) -> None:
    device.assigned[number] = scene
    device.waiting.add(number)
    with suppress(ClosedError):  # the listening thread notices the end of the process
        send(device.child.channel, scene)


def _mark_answered(device: _Device, number: int, question_id: str) -> None:
    rest = device.assigned[number].without([question_id])
    device.waiting.discard(number)
    device.consecutive_crashes = 0
    if rest.questions:
        device.assigned[number] = rest
    else:
        del device.assigned[number]


def _ahead(device: _Device) -> int:
    """Return how many scenes may wait at a device: as many as its workers and queues may hold."""
    assert device.facts is not None
    return device.facts.ahead


def _start(name: str, job: DeviceJob) -> _Device:
    """Start a device's process; it sees no other GPU than its own."""
    environment = dict(os.environ)
    device = name
    if found := _CUDA.fullmatch(name):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        index = int(found[1])
        names = visible.split(",") if visible else []
        environment["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else str(index)
        device = "cuda"
    # Away from the terminal's keys: they are for this process, also while the new process still imports.
    child = Child("unfuse.batch_inference.device_process", env=environment, own_session=True, output=None)
    with suppress(ClosedError):
        send(child.channel, replace(job, device=device))
    return _Device(name, child)
