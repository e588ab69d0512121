"""Decoders that misbehave in their process."""

from __future__ import annotations

import pytest

from tests.events.recordings import STREAM
from tests.started import PATIENCE_S, not_hanging
from unfuse.errors import EventFileError, EventStreamError, MissingPackageError
from unfuse.events import read_events
from unfuse.events.readers import decoder_client

FAKES = {
    "aborts": ("import os; os.abort()", "crashed .signal 6."),
    "exits": ("import os; os._exit(3)", "ended .exit code 3."),
    "hangs": ("import time; time.sleep(100_000)", "sent nothing for 6 s"),
    "takes all memory": ("x = bytearray(1 << 40)", "more memory than it may take"),
    "panics": ("class P(BaseException): pass\nraise P('a panic')", "P: a panic"),
    "prints": ("print('{}'); raise ValueError('oh')", "ValueError: oh"),
    "is missing": ("raise ImportError('no', name='evt3')", "no package evt3"),
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_decoder_that_misbehaves_gives_one_line_and_the_next_file_is_read(folder, tmp_path, monkeypatch, fake):
    code, message = FAKES[fake]
    body = "\n".join(f"    {line}" for line in code.splitlines())
    raising = code if fake == "is missing" else f"def decode_file_batches(path):\n{body}\nEvents = None"
    (tmp_path / "evt3.py").write_text(raising + "\n")
    # Only the decoder that hangs is silent for so long.
    monkeypatch.setattr(decoder_client, "SILENCE_SECONDS", 6.0 if fake == "hangs" else PATIENCE_S)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        decoder_client._slot.close()
        with not_hanging(), pytest.raises((EventFileError, MissingPackageError), match=message) as caught:
            read_events(folder / "evt3.raw")
        assert "\n" not in str(caught.value)
        patched.setattr(decoder_client, "SILENCE_SECONDS", PATIENCE_S)
        assert len(read_events(folder / "davis.aedat4")) == len(STREAM)
        decoder_client._slot.close()
    with monkeypatch.context() as patched:
        patched.setattr(decoder_client, "SILENCE_SECONDS", PATIENCE_S)
        assert len(read_events(folder / "evt3.raw")) == len(STREAM)


def test_events_of_a_decoder_are_validated(folder, tmp_path, monkeypatch):
    (tmp_path / "evt3.py").write_text(
        "import numpy as np\n"
        "class Events: x = np.array([1, 700]); y = np.array([1, 1]); t = np.array([1, 2]); p = np.array([0, 1])\n"
        "def decode_file_batches(path): yield Events\n"
    )
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        decoder_client._slot.close()
        with pytest.raises(EventStreamError, match=r"x of event 1: found 700, expected 0 to 639"):
            read_events(folder / "evt3.raw")
    decoder_client._slot.close()
