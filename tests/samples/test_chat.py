"""The chat of a row: the spellings that public data sets use, and a refusal of every other chat."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.errors import DatasetError
from unfuse.events import write_eventgpt_npy
from unfuse.samples import read_dataset
from unfuse.samples.chat import CHOICES_NOTE, CONTEXT_NOTE, DEFAULT_NOTE, TURNS_NOTE, read_chat
from unfuse.samples.dataset import MANIFEST_NAME, chat_notes
from unfuse.stages import DEFAULT_QUESTION
from unfuse.testing import synthetic_stream

Q, A = "How many cars turn left?", "Two."
SPELLINGS = {
    "published": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "ShareGPT": {"conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": A}]},
    "OpenAI": {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
    "roles in conversations": {"conversations": [{"role": "user", "content": Q}, {"role": "model", "content": A}]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": Q}]},
            {"role": "assistant", "content": [{"type": "text", "text": A}]},
        ]
    },
    "a part with its content": {"messages": [{"role": "user", "content": [{"type": "text", "content": Q}]}, [Q, A]]},
    "Gemini": {"conversation": [{"role": "user", "parts": [Q]}, {"role": "model", "parts": [{"text": A}]}]},
    "other case": {"Conversations": [{"From": "Human", "Value": Q}, {"FROM": " GPT ", "value": A}]},
    "question and answer": {"question": Q, "answer": A},
    "Question and Answer": {"Question": Q, "Answer": A},
    "query and response": {"query": Q, "response": A},
    "prompt and completion": {"prompt": Q, "completion": A},
    "Alpaca": {"instruction": Q, "input": "", "output": A},
    "user and assistant": {"user": Q, "assistant": A},
    "key with a prefix": {"user_question": Q, "gt_answer": A},
    "lists": {"questions": [Q], "answers": [A]},
    "LLaVA-Bench": {"question_id": 3, "text": Q, "answer": A},
    "Cauldron": {"texts": [{"user": Q, "assistant": A, "source": "x"}]},
    "VideoChat": {"QA": [{"i": "", "q": Q, "a": A}]},
    "human and gpt": {"conversations": [{"human": Q, "gpt": A}]},
    "one key a turn": {"conversations": [{"human": Q}, {"gpt": A}]},
    "answer first": {"dialog": [{"answer": A, "question": Q}]},
    "pairs": {"history": [[Q, A]]},
    "columns": {"conversations": {"from": ["human", "gpt"], "value": [Q, A]}},
    "JSON in a cell": {"conversations": json.dumps([{"from": "human", "value": Q}, {"from": "gpt", "value": A}])},
    "unknown key": {"exchange": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
    "empty list beside a question": {"conversations": [], "question": Q, "answer": A},
    "nested": {"conversations": [[{"from": "human", "value": Q}, {"from": "gpt", "value": A}]]},
    "system first": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": Q}, [Q, A]]},
    "a greeting first": {
        "conversations": [
            {"from": "gpt", "value": "Hello!"}, {"from": "human", "value": Q}, {"from": "gpt", "value": A}
        ]
    },
    "metadata beside it": {"question": Q, "answer": A, "question_type": "count", "model": "x", "num_questions": "3"},
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling(name):
    chat = read_chat(SPELLINGS[name] | {"id": 1, "event_data": "a.npy"}, "row 1")
    assert (chat.question, chat.reference) == (Q, A)
    assert DEFAULT_NOTE not in chat.notes


UNREADABLE = {
    "no human": {"conversations": [{"from": "gpt", "value": A}]},
    "unknown speaker": {"conversations": [{"from": "narrator", "value": Q}]},
    "no speaker": {"conversations": [{"value": Q}]},
    "no text": {"conversations": [{"from": "human"}]},
    "null": {"conversations": [{"from": "human", "value": None}]},
    "a number": {"conversations": [{"from": "human", "value": 3}]},
    "plain texts": {"conversations": [Q, A]},
    "one text": {"conversations": Q},
    "empty turn": {"conversations": [{}]},
    "speaker is a list": {"conversations": [{"from": ["human"], "value": Q}]},
    "unknown part": {"messages": [{"role": "user", "content": [{"type": "poem", "text": Q}]}]},
    "two questions": {"question": Q, "prompt": "Another?"},
    "answer alone": {"answer": A},
    "text alone": {"text": Q},
    "number as question": {"question": [3]},
    "message as text": {"message": Q},
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_chat_is_refused(name):
    """Never the default question in its stead."""
    with pytest.raises(DatasetError, match=r"^row 7") as caught:
        read_chat(UNREADABLE[name] | {"id": 1}, "row 7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row", [{}, {"conversations": None}, {"conversations": []}, {"question": ""}, {"label": "car", "source": "DSEC"}]
)
def test_no_chat_at_all(row):
    chat = read_chat(row, "row 1")
    assert (chat.question, chat.reference, chat.notes) == ("", None, (DEFAULT_NOTE,))


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"conversations": [{"from": "human", "value": t} for t in (Q, "Where?")]}, TURNS_NOTE),
        ({"qa_pairs": [[Q, A], ["Where?", "Here."]]}, TURNS_NOTE),
        ({"history": [[Q, A]], "query": "Where?", "response": "Here."}, TURNS_NOTE),
        ({"questions": [Q, "Where?"]}, TURNS_NOTE),
        ({"messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": Q}]}, CONTEXT_NOTE),
        ({"messages": [{"role": "user", "content": Q}, {"role": "tool", "content": "3"}]}, CONTEXT_NOTE),
        ({"question": Q, "options": ["1", "2"]}, CHOICES_NOTE),
        ({"conversations": [{"from": "human", "value": ""}]}, DEFAULT_NOTE),
    ],
)
def test_parts_that_the_model_does_not_get(row, note):
    chat = read_chat(row, "row 1")
    assert note in chat.notes
    assert chat.question in (Q, "")


def test_an_alpaca_input_belongs_to_the_question():
    assert read_chat({"instruction": "Count.", "input": "Cars only.", "output": A}, "").question == "Count.\nCars only."


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["human", "gpt", "user", Q]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "text", "q", "human"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@examples(200)
@given(st.dictionaries(st.sampled_from(["conversations", "messages", "question", "answer", "qa", "x"]), VALUES))
def test_any_row_is_read_or_refused(row):
    with suppress(DatasetError):
        chat = read_chat(row, "row 1")
        assert isinstance(chat.question, str)
        assert chat.reference is None or isinstance(chat.reference, str)


def test_a_data_set_counts_and_says(tmp_path):
    (tmp_path / "event_npy").mkdir()
    write_eventgpt_npy(tmp_path / "event_npy" / "a.npy", synthetic_stream(100))
    rows = [SPELLINGS["OpenAI"], {}, {"conversations": []}, {"questions": [Q, "Where?"]}, UNREADABLE["no human"]]
    text = json.dumps([row | {"event_data": "a.npy"} for row in rows])
    (tmp_path / MANIFEST_NAME).write_text("\ufeff" + text, encoding="utf-8")
    data = read_dataset(tmp_path, max_samples=4)
    assert [sample.question for sample in data.samples] == [Q, DEFAULT_QUESTION, DEFAULT_QUESTION, Q]
    assert data.notes == (f"2 of 4 rows have {DEFAULT_NOTE}", f"1 of 4 rows have {TURNS_NOTE}")
    assert chat_notes(tmp_path) == data.notes
    assert read_dataset(tmp_path, max_samples=1).notes == ()
    with pytest.raises(DatasetError, match="row 4: found a chat without a human turn"):
        read_dataset(tmp_path)
