"""Several devices: a process each. Answers are those of one; a device that dies loses nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.examples import examples
from tests.started import wait_for
from unfuse import processes
from unfuse.batch_inference import devices
from unfuse.batch_inference.answer import Answer, SceneStarted
from unfuse.batch_inference.device import DeviceFacts, DeviceJob, DeviceResult
from unfuse.batch_inference.devices import DeviceProcesses, find_devices
from unfuse.batch_inference.flow import FlowSettings
from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.batch_inference.scenes import SceneQuestions
from unfuse.batch_inference.times import Times
from unfuse.batch_inference.wire import receive, send
from unfuse.errors import DeviceError, InputError
from unfuse.processes import Channel, ClosedError
from unfuse.report.schemas import schemas
from unfuse.samples import Question, Sample
from unfuse.stages import Generation, Sampling
from unfuse.unavailable import Unavailable

YES = Generation(token_ids=(3,), text="yes", stop_reason="eos", prompt_tokens=2)


def test_two_processes_answer_as_one_does_and_one_that_is_killed_loses_nothing(
    demo_work, expected, tmp_path, monkeypatch
):
    started = []
    start = devices._start
    monkeypatch.setattr(devices, "_start", lambda *given: started.append(start(*given)) or started[-1])

    def kill(record):
        if started[0].child.usable:
            os.kill(started[0].child.pid, signal.SIGKILL)

    run = answer_dataset(
        RunJob(
            model="demo",
            work=demo_work,
            settings=RunSettings(max_new_tokens=8, workers=0, capacity=1, encode_batch=1),
            output=tmp_path / "run",
            devices=("cpu", "cpu"),
        ),
        on_answer=kill,
    )
    assert {each.sample_id: each.token_ids for each in run.answers()} == {
        n: own.token_ids for n, own in expected.items()
    }
    assert run.summary().ok == 12
    (death,) = run.summary().device_deaths
    assert death == "device cpu was lost (signal 9); it was started again, and its unfinished samples tried again"
    assert f"Warning: {death}" in run.summary().lines()


def test_a_device_that_does_not_become_ready(monkeypatch):
    with pytest.raises(DeviceError, match=r"device d1: .*no config\.json"):
        stands(monkeypatch, [None, "model: no config.json"])
    with pytest.raises(DeviceError, match=r"device d0: its process ended \(signal 9\)"):
        stands(monkeypatch, [""])


def test_a_loaded_model_is_one_device(demo_model, demo_work, tmp_path):
    for names in (("cpu", "cpu"), ("cpu",)):
        with pytest.raises(InputError, match="loaded model"):
            answer_dataset(
                RunJob(model=demo_model, work=demo_work, settings=RunSettings(), output=tmp_path / "run", devices=names)
            )


def test_one_device_has_a_process_as_well(demo_work, tmp_path, monkeypatch):
    """It dies of every scene: the run ends, and reports no times, since no process sent any."""
    made = stood(monkeypatch, [], again=None)
    work = Work(replace(demo_work.dataset, samples=demo_work.dataset.samples[:1]))
    monkeypatch.setattr(Stand, "poison", {work.rows[0][1].question_id})
    run = answer_dataset(
        RunJob(model="demo", work=work, settings=RunSettings(), output=tmp_path / "run", devices=("cpu",))
    )
    summary = run.summary()
    assert (len(made), summary.ok, summary.failed) == (2, 0, 1)
    assert summary.device_deaths[1] == "device cpu was lost (signal 9); nothing was left to do"
    assert "Bottleneck: not known, since no process that answered has lived to say how busy it was" in summary.lines()
    Draft202012Validator(schemas()["answers-summary"]).validate(json.loads((run.folder / "summary.json").read_text()))


def test_names_of_devices(monkeypatch):
    import torch

    assert find_devices("cpu,cpu") == ("cpu", "cpu")
    assert find_devices("cuda:0,cuda:3") == ("cuda:0", "cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_devices("auto") == ("cpu",)
    with pytest.raises(DeviceError, match="found 0 GPUs, expected 2"):
        find_devices("2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert find_devices("auto") == tuple(f"cuda:{i}" for i in range(4))
    assert find_devices("2") == ("cuda:0", "cuda:1")
    for wrong in ("", "0", "gpu", "cuda:0,", "-1", "cuda:x"):
        with pytest.raises(DeviceError, match="devices"):
            find_devices(wrong)


def test_a_process_sees_its_own_gpu_only_and_no_key_at_the_terminal(monkeypatch):
    seen = []

    def popen(command, *, env, **more):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        assert more["start_new_session"]
        return SimpleNamespace()

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    job = DeviceJob(
        model="demo", device="auto", dtype="auto", engine="auto",
        flow=FlowSettings(max_new_tokens=1, sampling=Sampling()),
    )  # fmt: skip
    for visible, wanted in ((None, "2"), ("5,7,GPU-abc", "GPU-abc")):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        devices._start("cuda:2", job).child.channel.close()
        assert seen.pop() == wanted


class Stand:
    """Stands in for a device's process: a thread that answers at once, and may die after so many answers."""

    poison: frozenset[str] = frozenset()
    """Questions that it dies of."""

    def __init__(self, name, dies_after, capacity):
        self.channel, self._theirs = (Channel(each) for each in socket.socketpair())
        self._left = dies_after
        self._facts = DeviceFacts(
            model={"device": "cpu", "name": "demo", "notes": [] if name == "d0" else ["engine eager: no compiler"]},
            environment={}, workers=1, capacity=capacity, ahead=1,
        )  # fmt: skip
        self.answered = 0
        self.most = 0
        child = SimpleNamespace(
            channel=self.channel, end=lambda _: -9, kill=self.channel.shut_down, close=self.channel.close
        )
        self.device = devices._Device(name, child)
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self):
        with self._theirs:
            try:
                if isinstance(self._left, str):
                    if self._left:
                        send(self._theirs, Unavailable(self._left))
                    return
                send(self._theirs, self._facts)
                while (scene := receive(self._theirs)) is not None:
                    send(self._theirs, SceneStarted(scene.questions[0].question_id))
                    for question in scene.questions:
                        if self.answered == self._left or question.question_id in self.poison:
                            return
                        self.answered += 1
                        send(self._theirs, Answer(question=question, generation=YES, media_sha256="m"))
                send(self._theirs, DeviceResult(times=Times(wall_s=1.0), worker_deaths=0, most_held=1))
            except ClosedError:
                pass


def stood(monkeypatch, plan, capacity=3, again=None):
    """Stands in for processes: those of a plan, and all after them."""
    made = []

    def start(name, job):
        made.append(Stand(name, plan[len(made)] if len(made) < len(plan) else again, capacity))
        return made[-1].device

    monkeypatch.setattr(devices, "_start", start)
    return made


def stands(monkeypatch, plan, capacity=3, again=None):
    made = stood(monkeypatch, plan, capacity, again)
    job = DeviceJob(
        model="demo", device="cpu", dtype="float32", engine="eager",
        flow=FlowSettings(max_new_tokens=1, sampling=Sampling()),
    )  # fmt: skip
    return DeviceProcesses(job, tuple(f"d{i}" for i in range(len(plan)))), made


def test_notes_of_other_devices_come_with_their_names(monkeypatch):
    running, _ = stands(monkeypatch, [None, None])
    with running:
        assert running.facts.model["notes"] == ["device d1: engine eager: no compiler"]
        assert running.facts.workers == 2


def numbered(sizes):
    return [
        SceneQuestions(
            sample=Sample(sample_id=str(i)),
            questions=tuple(Question(question_id=f"{i}#{n}", text="?") for n in range(size)),
        )
        for i, size in enumerate(sizes)
    ]


@examples(40)
@given(
    st.lists(st.integers(1, 4), max_size=30),
    st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=3),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(0, 12)),
)
def test_every_question_is_answered_once_as_long_as_one_device_lives(sizes, plan, capacity, again):
    with pytest.MonkeyPatch.context() as patched:
        running, made = stands(patched, [*plan, None], capacity, again)
        answered = []
        with running:
            results = running.answer(numbered(sizes), lambda answer: answered.append(answer.question.question_id))
            died = [stand for stand in made if stand.answered == stand._left]
        assert sorted(answered) == sorted(f"{i}#{n}" for i, size in enumerate(sizes) for n in range(size))
        assert 1 <= len(results) <= len(made) - len(running.deaths)
        assert len(running.deaths) <= len(died)


@examples(40)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=40), st.sets(st.integers(0, 39), max_size=3), st.integers(1, 30)
)
def test_scenes_that_processes_die_of_fail_alone(sizes, poison, capacity):
    wrong = {f"{i}#{sizes[i] - 1}" for i in poison if i < len(sizes)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stand, "poison", wrong)
        # In so few scenes, a process may have none that it can answer.
        patched.setattr(devices, "_MAX_CONSECUTIVE_CRASHES", 99)
        running, made = stands(patched, [None, None], capacity)
        answers = []
        with running:
            running.answer(numbered(sizes), answers.append)
    assert sorted(each.question.question_id for each in answers) == sorted(
        f"{i}#{n}" for i, size in enumerate(sizes) for n in range(size)
    )
    failed = {each.question.question_id: each.error for each in answers if each.error}
    assert failed.keys() == wrong
    assert set(failed.values()) <= {"a device's process died of it again (signal 9)"}
    assert len(made) - 2 <= len(running.deaths) <= 3 * len(wrong)


def test_a_device_whose_processes_never_answer_is_given_up(monkeypatch):
    """The other has time to be: it answers nothing until then."""
    running, made = stands(monkeypatch, [0, None], again=0)
    receive_now = devices.receive

    def late(channel, **more):
        message = receive_now(channel, **more)
        if channel is made[1].channel:
            wait_for(lambda: len(running.deaths) >= 3)
        return message

    monkeypatch.setattr(devices, "receive", late)
    answers = []
    with running:
        running.answer(numbered([1] * 200), answers.append)
    assert len(answers) == 200
    assert len(made) == 4
    assert [death.partition("; ")[2] for death in running.deaths] == [
        *["it was started again, and its unfinished samples tried again"] * 2,
        "its unfinished samples went to the others",
    ]


def test_an_error_when_all_devices_are_dead(monkeypatch):
    running, made = stands(monkeypatch, [2, 3], again=0)
    answered = []
    with running, pytest.raises(DeviceError, match="no other is left.*--resume"):
        running.answer(numbered([1] * 20), answered.append)
    assert len({answer.question.question_id for answer in answered}) == len(answered) <= 5
    assert 4 <= len(made) <= 8


def test_a_faster_device_gets_more(monkeypatch):
    """One of the two never answers until the other has answered all that is left."""
    running, made = stands(monkeypatch, [None, None], capacity=2)
    slow = made[1]
    gate = threading.Event()
    receive_now = devices.receive

    def late(channel, **more):
        if channel is slow.channel:
            gate.wait()
        return receive_now(channel, **more)

    count = [0]

    def emit(answer):
        count[0] += 1
        if count[0] == 20 - 3:
            gate.set()

    monkeypatch.setattr(devices, "receive", late)
    with running:
        running.answer(numbered([1] * 20), emit)
    assert count[0] == 20
    assert made[0].answered >= 20 - 4


class Simulated:
    """A device that takes up as many scenes as its batch holds, one after the other, and then answers all of them."""

    ahead, capacity = 39, 256
    patience = 500
    """Ticks after which it does not wait for a full batch."""

    def __init__(self, name, pace):
        self.pace = pace
        child = SimpleNamespace(channel=self, end=lambda _: -9, kill=lambda: None, close=lambda: None)
        self.device = devices._Device(name, child)
        self.inbox, self.pending = [], []
        self.taken, self.at = 0, 0

    def next_at(self):
        """When it does something next; None while it waits for its parent."""
        if self.inbox:
            return max(self.at, self.inbox[0][0]) + self.pace
        return self.at + self.patience if self.pending else None

    def act(self, now):
        """Yield the messages of the device at this time."""
        self.at = now
        scene = self.inbox.pop(0)[1] if self.inbox else None
        if scene is not None:
            self.taken += 1
            self.pending.append(scene)
            yield SceneStarted(scene.questions[0].question_id)
        if scene is None or len(self.pending) == self.capacity:
            for each in self.pending:
                yield Answer(question=each.questions[0], generation=YES, media_sha256="m")
            self.pending = []


class Simulation:
    """Stands in for the queue of messages: devices on a simulated clock, without threads and processes."""

    def __init__(self, monkeypatch, paces):
        self.now, self.made = 0, []
        self.messages = deque()

        def start(name, job):
            self.made.append(Simulated(name, paces[name]))
            facts = DeviceFacts(
                model={"notes": []}, environment={}, workers=1, capacity=Simulated.capacity, ahead=Simulated.ahead
            )
            self.messages.append((self.made[-1].device, facts))
            return self.made[-1].device

        def give(device, scene):
            if scene is devices.ENDED:
                result = DeviceResult(times=Times(wall_s=1.0), worker_deaths=0, most_held=1)
                self.messages.append((device.device, result))
            else:
                device.inbox.append((self.now, scene))

        monkeypatch.setattr(devices, "_start", start)
        monkeypatch.setattr(devices, "send", give)
        monkeypatch.setattr(devices, "queue", SimpleNamespace(SimpleQueue=lambda: self))
        monkeypatch.setattr(DeviceProcesses, "_listen", lambda self, device: None)

    def get(self):
        while not self.messages:
            self.now, number = min((at, n) for n, each in enumerate(self.made) if (at := each.next_at()) is not None)
            device = self.made[number]
            self.messages += [(device.device, message) for message in device.act(self.now)]
        return self.messages.popleft()


def test_devices_of_similar_speed_get_similar_shares(monkeypatch):
    """Shared out by answers, one of the two got 505 of 800."""
    simulation = Simulation(monkeypatch, {"d0": 10, "d1": 11})
    job = DeviceJob(
        model="demo", device="cpu", dtype="float32", engine="eager",
        flow=FlowSettings(max_new_tokens=1, sampling=Sampling()),
    )  # fmt: skip
    answers = []
    with DeviceProcesses(job, ("d0", "d1")) as running:
        running.answer(numbered([1] * 800), answers.append)
    assert len(answers) == 800
    taken = [device.taken for device in simulation.made]
    assert abs(taken[0] - taken[1]) <= 80, taken
