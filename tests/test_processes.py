"""Child processes: how they die, hang, send rubbish, are ended and replaced."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.started import PATIENCE_S, not_hanging, wait_for
from unfuse import processes
from unfuse.processes import (
    Channel,
    Child,
    ChildError,
    ChildSlot,
    ClosedError,
    InvalidReplyError,
    LateError,
    exit_status,
)

ECHO = """
def answer(request):
    if "run" in request:
        exec(request.pop("run"), globals() | {"request": request})
    yield {"more": True}, ()
    yield {"echo": request}, [bytes(3), memoryview(b"abcd")]
serve_json(answer)
"""
"""Runs the requested code, then answers."""
LIMITS = (str(4 << 30), str(1 << 20))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that starts a child from source code."""
    monkeypatch.syspath_prepend(tmp_path)
    children = []

    def start(code, *arguments, silence_s=PATIENCE_S, **options):
        prologue = "import os, signal, socket, subprocess, sys, time\nfrom unfuse.processes import *\n"
        number = len(list(tmp_path.iterdir()))
        (tmp_path / f"program_{number}.py").write_text(prologue + code)
        child = Child(f"program_{number}", arguments, env=os.environ, **options)
        child.channel.limit_silence(silence_s)
        children.append(child)
        return child

    yield start
    for child in children:
        child.close()


@pytest.fixture
def slot(program):
    with make_slot(program, ECHO, *LIMITS) as made:
        yield made


@contextmanager
def make_slot(program, code, *arguments, **options):
    made = ChildSlot(partial(program, code, *arguments, **options))
    try:
        yield made
    finally:
        made.close()


def ask(slot, **request):
    with slot.exchange() as child:
        child.channel.send_json(request)
        assert child.channel.receive_json() == ({"more": True}, [])
        return child.channel.receive_json(max_bytes=7)


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def frame(head):
    return struct.pack("<Q", len(head)) + head


def test_requests_and_replies(slot):
    for n in range(3):
        message, blobs = ask(slot, n=n)
        assert message == {"echo": {"n": n}}
        assert blobs == [bytes(3), b"abcd"]
    assert ask(slot)[0] == {"echo": {}}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (signal 11)"),
        ("os._exit(3)", "ended (exit code 3)"),
        ("os.close(int(sys.argv[1])); time.sleep(100_000)", "gave no sensible reply"),
        ("raise KeyError('bug')", "ended (exit code 1)"),
    ],
)
def test_a_death_has_words_and_the_next_request_a_new_child(slot, monkeypatch, code, reason):
    monkeypatch.setattr(processes, "_EXIT_S", 1.0 if "close" in code else PATIENCE_S)
    first = slot.child().pid
    with not_hanging(), pytest.raises(ChildError) as caught:
        ask(slot, run=code)
    assert str(caught.value) == reason
    assert not runs(first)
    assert ask(slot)[0] == {"echo": {}}
    assert slot.child().pid != first


def test_a_child_that_died_between_requests_is_replaced(slot):
    child = slot.child()
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(PATIENCE_S) == -9
    assert ask(slot)[0] == {"echo": {}}


def test_silence(program):
    with make_slot(program, "time.sleep(100_000)", silence_s=0.05) as slot, not_hanging():
        pid = slot.child().pid
        with pytest.raises(ChildError, match=r"^sent nothing for 0\.05 s$"):
            ask(slot)
        assert not runs(pid)


def test_silence_within_a_message(program):
    code = "end = socket.socket(fileno=int(sys.argv[1]))\nend.sendall(b'\\x09')\ntime.sleep(100_000)"
    child = program(code)
    assert child.channel.socket.recv(1) == b"\x09"
    child.channel.limit_silence(0.05)
    with not_hanging(), pytest.raises(LateError, match="sent nothing"):
        child.channel.receive_head()


def test_a_deadline_counts_the_whole_reply(program):
    """A child that sends a byte now and then is never silent."""
    code = "end = socket.socket(fileno=int(sys.argv[1]))\nwhile True:\n    end.sendall(b'\\x09')\n    time.sleep(0.01)"
    child = program(code)
    assert child.channel.socket.recv(1) == b"\x09"
    with not_hanging(), pytest.raises(LateError, match="^took too long$"):
        child.channel.receive_into(bytearray(1 << 20), deadline=time.monotonic() + 0.5)
    with pytest.raises(LateError, match="^took too long$"):
        child.channel.receive_head(deadline=time.monotonic() - 1)


def test_a_child_that_takes_no_message(program):
    child = program("time.sleep(100_000)", silence_s=0.05)
    with not_hanging(), pytest.raises(LateError, match="took no message"):
        child.channel.send(bytes(64 << 20))


@pytest.mark.parametrize(
    "message",
    [
        b"rubbish, without a length",
        struct.pack("<Q", processes.MAX_JSON_BYTES + 1),
        frame(b"no json"),
        frame(b"\xff"),
        frame(b"[" * 100_000),
        frame(b"[]"),
        frame(b"{}"),
        *(frame(json.dumps({"sizes": sizes}).encode()) for sizes in (None, 1, ["x"], [-1], [9], [4, 5], [1e400], [{}])),
        frame(json.dumps({"sizes": [0] * (processes.MAX_BLOBS + 1)}).encode()),
    ],
)
def test_rubbish_and_frames_that_are_too_large(message):
    ours, theirs = map(Channel, socket.socketpair())
    with ours, theirs:
        theirs.socket.sendall(message)
        theirs.shut_down()
        with pytest.raises(InvalidReplyError, match="gave no sensible reply"):
            ours.receive_json(max_bytes=8)


def test_a_reply_that_its_reader_cannot_use_ends_the_child(slot):
    pid = slot.child().pid
    for error in (ValueError, KeyError, TypeError, ZeroDivisionError):
        with pytest.raises(ChildError, match="gave no sensible reply"), slot.exchange():
            raise error
        assert not runs(pid)


def test_what_interrupts_an_exchange_ends_the_child(slot):
    """The next request must not read the rest of this reply."""

    def interrupted():
        with slot.exchange() as child:
            child.channel.send_json({"n": 1})
            child.channel.receive_json()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ask(slot, n=2)[0] == {"echo": {"n": 2}}


def test_a_kill_wakes_the_thread_that_waits(program):
    child = program("time.sleep(100_000)")
    failures = []

    def wait():
        try:
            child.channel.receive_head()
        except ClosedError as error:
            failures.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert child.kill() == -9
    thread.join(PATIENCE_S)
    assert len(failures) == 1
    child.close()
    child.close()


def test_a_group_is_ended_once(program, monkeypatch):
    """After its leader was reaped, the number may be that of somebody else's group."""
    child = program("time.sleep(100_000)", own_session=True)
    ended, real = [], os.killpg
    monkeypatch.setattr(os, "killpg", lambda group, number: (ended.append(group), real(group, number)))
    child.end(0.0)
    child.kill()
    child.close()
    assert ended == [child.pid]


def test_the_limit_of_silence_returns_after_a_deadline():
    ours, theirs = map(Channel, socket.socketpair())
    with ours, theirs:
        ours.limit_silence(0.05)
        theirs.send(b"head")
        assert ours.receive_head(deadline=time.monotonic() + 100) == b"head"
        with pytest.raises(LateError, match=r"sent nothing for 0\.05 s"):
            ours.receive_head()


def test_the_end_of_a_session_leader_ends_what_it_started(program):
    code = (
        "channel = Channel.inherited(sys.argv[1])\n"
        "below = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(100_000)'])\n"
        "channel.send_json({'pid': below.pid})\n"
        "time.sleep(100_000)"
    )
    child = program(code, own_session=True)
    message, _ = child.channel.receive_json()
    assert runs(message["pid"])
    child.close()
    wait_for(lambda: not runs(message["pid"]))


def test_a_child_ends_by_itself_when_its_parent_closes_the_channel(slot):
    child = slot.child()
    child.channel.shut_down()
    assert child.end(PATIENCE_S) == 0
    assert exit_status(0) == "exit code 0"


def test_an_end_without_grace(program):
    assert program("time.sleep(100_000)").end(0.05) == -9
    assert exit_status(-9) == "signal 9"


def test_a_forked_process_starts_a_child_of_its_own(slot):
    ask(slot)
    first = slot.child().pid
    read, write = os.pipe()
    if not os.fork():
        try:
            mine = ask(slot, n=3)[0] == {"echo": {"n": 3}} and slot.child().pid != first
            slot.close()
            os.write(write, b"y" if mine else b"n")
        finally:
            os._exit(0)
    with not_hanging():
        assert os.read(read, 1) == b"y"
    os.wait()
    assert slot.child().pid == first
    assert ask(slot)[0] == {"echo": {}}


def test_limits_and_output_of_a_child_that_serves_json(slot):
    code = (
        "import resource\n"
        "limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]\n"
        "print('not a reply', flush=True); os.write(2, b'nor this')\n"
        "request['limits'] = limits, resource.getrlimit(resource.RLIMIT_CORE)"
    )
    assert ask(slot, run=code)[0]["echo"]["limits"] == [[[4 << 30] * 2, [1 << 20] * 2], [0, 0]]


def test_a_child_finds_modules_where_this_process_does_and_gets_no_other_variable(program, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    code = "channel = Channel.inherited(sys.argv[1])\nchannel.send_json({'env': dict(os.environ), 'path': sys.path})"
    child = program(code)
    assert child.channel.receive_json()[0]["env"]["SECRET"] == "secret"
    child = Child("program_0", env={"PATH": "/bin"})
    message, _ = child.channel.receive_json()
    child.close()
    assert set(message["env"]) - {"LC_CTYPE"} == {"PATH", "PYTHONPATH"}
    assert {path for path in sys.path if path} <= set(message["path"])


def test_a_child_inherits_files(program, tmp_path):
    with (tmp_path / "shared").open("w+b", buffering=0) as file:
        child = program("os.write(int(sys.argv[2]), b'from the child')", str(file.fileno()), files=(file.fileno(),))
        assert child.wait(PATIENCE_S) == 0
        assert (tmp_path / "shared").read_bytes() == b"from the child"


def test_output_goes_into_a_file(program, tmp_path):
    with (tmp_path / "output").open("wb") as file:
        child = program("print('one')\nsys.stderr.write('two')", output=file)
        with pytest.raises(ClosedError):
            child.channel.receive_head()
        assert child.wait(PATIENCE_S) == 0
    assert sorted((tmp_path / "output").read_text().split()) == ["one", "two"]
