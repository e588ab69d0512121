"""How a command ends when something is wrong."""

from __future__ import annotations

import socket

import pytest
import torch

from unfuse import loading
from unfuse.batch_inference import device_process
from unfuse.batch_inference.wire import receive
from unfuse.cli import run
from unfuse.errors import DeviceError, PromptError, as_ours
from unfuse.processes import Channel

TOO_SMALL = "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 11.90 GiB of which 41 MiB"


def runs_out(*_, **__):
    raise torch.OutOfMemoryError(TOO_SMALL)


@pytest.mark.parametrize("verb", ["run", "ask", "bench", "verify", "serve"])
def test_a_device_that_is_too_small_is_one_line(verb, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "_adapter", runs_out)
    arguments = {"ask": ["demo:0", "What moves?"], "serve": ["demo", "--port", "0"]}.get(verb, ["demo"])
    assert run([verb, *arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "device memory: found none left (CUDA out of memory. Tried to allocate 172.00 MiB)" in error
    assert "Try --dtype bfloat16" in error
    assert error.count("\n") == 1


def test_what_is_ours_and_what_is_not():
    ours = PromptError("no")
    assert as_ours(ours) is ours
    assert isinstance(as_ours(torch.OutOfMemoryError(TOO_SMALL)), DeviceError)
    assert as_ours(RuntimeError("no")) is None


@pytest.mark.parametrize("bug", [False, True])
def test_a_devices_process_says_it_too(bug, monkeypatch):
    """A bug of ours is another matter: it is heard of with its traceback."""

    def goes_wrong(*_):
        raise AssertionError("our own") if bug else torch.OutOfMemoryError(TOO_SMALL)

    monkeypatch.setattr(device_process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(device_process, "_serve", goes_wrong)
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel:
        if bug:
            with pytest.raises(AssertionError, match="our own"):
                device_process.main([str(theirs.detach())])
            return
        assert device_process.main([str(theirs.detach())]) == 2
        assert "none left (CUDA out of memory" in receive(channel).reason
