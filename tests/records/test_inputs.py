"""The first changed input of a resumed run is named."""

from __future__ import annotations

import pytest

from unfuse.records.inputs import PresentInput, RecordedInput, first_changed_input


def present(name: str, question: str = "What?", sha256: str = "a" * 64) -> PresentInput:
    return PresentInput(sample_id=name, question=question, media=f"{name}.npy", media_sha256=lambda: sha256)


def recorded(question: str | None = "What?", sha256: str | None = "a" * 64) -> RecordedInput:
    return RecordedInput(question=question, media_sha256=sha256)


def test_equal_inputs() -> None:
    assert first_changed_input({}, []) is None
    assert first_changed_input({"1": recorded(), "2": recorded()}, [present("2"), present("1"), present("3")]) is None


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        (present("2", question="Who?"), "question of '2': recorded 'What?', now 'Who?'"),
        (present("2", question="Who?" * 99), "question of '2': recorded 'What?', now 'Who?Who?"),
        (
            present("2", sha256="b" * 64),
            "media of '2' (2.npy): recorded sha256 aaaaaaaaaaaaaaaa, now bbbbbbbbbbbbbbbb",
        ),
        (present("4"), "row '2': recorded, now missing"),
    ],
)
def test_the_first_change_is_named(changed: PresentInput, phrase: str) -> None:
    before = {"1": recorded(), "2": recorded(), "3": recorded()}
    found = first_changed_input(before, [present("1"), changed, present("3")])
    assert found is not None
    assert found.startswith(phrase)
    assert len(found) < 250


def test_rows_without_a_record_are_not_read() -> None:
    def read() -> str:
        raise AssertionError

    unread = PresentInput(sample_id="2", question="Another", media="2.npy", media_sha256=read)
    assert first_changed_input({"1": recorded()}, [present("1"), unread]) is None


def test_a_record_without_question_or_hash_says_nothing_about_them() -> None:
    assert first_changed_input({"1": recorded(None, None)}, [present("1")]) is None
    assert first_changed_input({"1": recorded(None)}, [present("1", sha256="b" * 64)]) is not None
