"""``unfuse doctor`` as a user meets it."""

from __future__ import annotations

from unfuse.cli import run


def test_doctor(capsys):
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("torch", "transformers", "CPU", "hdf5plugin", "checkpoints/EventGPT-7b"))
