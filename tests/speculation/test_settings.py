from pathlib import Path

import pytest

from unfuse.errors import InputError
from unfuse.speculation.settings import SpeculationSettings, parse_draft_tokens


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "magic"}, "speculate: found 'magic', expected auto, off, history, ngram"),
        ({"draft_tokens": 0}, "draft-tokens: found 0, expected auto, or 1 to 15"),
        ({"draft_tokens": 16}, "found 16"),
        ({"method": "off", "draft_tokens": 3}, "found speculate off"),
        ({"history": Path("/dev/zero")}, "history /dev/zero: found no regular file"),
        ({"history": Path()}, "no regular file"),
        ({"history": Path("nowhere/file")}, "history nowhere/file: found no such folder"),
        ({"method": "ngram", "history": "file"}, "history: found speculate ngram, expected history"),
        ({"method": "off", "history": "file"}, "found speculate off"),
    ],
)
def test_wrong_options_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        SpeculationSettings(**given)


def test_draft_tokens_of_the_command_line():
    assert parse_draft_tokens("auto") is None
    assert parse_draft_tokens("7") == 7
    with pytest.raises(InputError, match="found 'many'"):
        parse_draft_tokens("many")
