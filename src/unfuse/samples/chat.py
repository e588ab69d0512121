"""Read the chat of a dataset row in the spellings that public data sets use.

A row holds a list of turns (ShareGPT's ``conversations`` with ``from`` and ``value``, OpenAI's ``messages`` with
``role`` and ``content``, pairs of a question and an answer), or a question and an answer. Names of keys and speakers
are compared without regard to case. A chat that cannot be read is an error: the default question in its stead would
measure another prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from unfuse.errors import DatasetError

_LISTS: Final = (
    "conversations", "conversation", "messages", "message", "turns", "dialogue", "dialogues", "dialog", "dialogs",
    "chat", "chats", "qa_pairs", "qa", "qas", "texts", "history",
)  # fmt: skip
_QUESTION: Final = re.compile(
    r"(?:\w+_)?(?:question|query|queries|prompt|instruction)s?(?:_text|_str|_content|_en)?"
    r"|problem|q|(?:user|human|input)(?:_(?:text|message|input|content|turn))?"
)
_ANSWER: Final = re.compile(
    r"(?:\w+_)?(?:answer|response|completion|reply)s?(?:_text|_str|_content|_en)?"
    r"|a|output(?:_text)?|solution|ground_truth|(?:assistant|gpt)(?:_(?:text|message|output))?"
)
_OTHER: Final = re.compile(r"system_?\w*|negative_\w+|num_\w+|n_\w+|output_\w*prompt\w*")
_SPEAKERS: Final = ("from", "role", "speaker", "author", "sender")
_TEXTS: Final = ("value", "content", "text", "message", "utterance", "parts")
_CHOICES: Final = ("options", "choices", "candidates")
_HUMAN: Final = frozenset(
    {"human", "user", "usr", "person", "prompter", "questioner", "question", "q", "customer", "client", "student"}
)
_MODEL: Final = frozenset(
    {"gpt", "assistant", "model", "bot", "chatbot", "chatgpt", "ai", "agent", "bard", "bing", "llm", "answer", "a"}
)
_CONTEXT: Final = frozenset({"system", "developer", "tool", "function", "observation", "function_call", "context"})
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
_MEDIA_PARTS: Final = frozenset(
    f"{prefix}{kind}{suffix}"
    for prefix in ("", "input_") for kind in ("image", "video", "event", "events", "file") for suffix in ("", "_url")
)  # fmt: skip
_TURN: Final = 'turns such as {"from": "human", "value": "..."}'

DEFAULT_NOTE: Final = "no question, so the default question is asked"
TURNS_NOTE: Final = "several human turns, of which only the first is asked"
CONTEXT_NOTE: Final = "turns of a system or a tool, which the model does not get"
CHOICES_NOTE: Final = "choices beside the question, which the model does not get"

_Role = Literal["human", "model", "context"]
_Turn = tuple[_Role, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """The question of a row, its answer, and sentences about the parts that no model gets."""

    question: str = ""
    """The first human turn; empty where the row has no chat."""
    reference: str | None = None
    notes: tuple[str, ...] = ()


def read_chat(row: Mapping[str, Any], where: str) -> Chat:
    """Return the chat of a row.

    Args:
        row: the row, with any other keys.
        where: file and row, for messages.

    Raises:
        DatasetError: there is a chat, and it cannot be read.
    """
    fields = {_key(name): value for name, value in row.items() if value not in (None, "", [], {})}
    lists = [name for name in _LISTS if name in fields] + [name for name, value in fields.items() if _is_chat(value)]
    turns = list(_turns(fields[lists[0]], f"{where} {lists[0]}")) if lists else []
    if not lists or lists[0] == "history":
        turns += _own_turns(fields, where)
    if not turns:
        return Chat(notes=(DEFAULT_NOTE,))
    chat = _first_exchange(turns, where)
    choices = (CHOICES_NOTE,) if any(name in fields for name in _CHOICES) else ()
    return Chat(question=chat.question, reference=chat.reference, notes=(*chat.notes, *choices))


def read_question(value: Any, where: str) -> str:
    """Return one entry of a list of questions: text, or an object with a question or a chat.

    Raises:
        DatasetError: neither.
    """
    if isinstance(value, dict):
        value = read_chat(value, where).question
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(where, found=f"no question ({type(value).__name__})", expected="a question as text")
    return value


def _first_exchange(turns: list[_Turn], where: str) -> Chat:
    humans = [index for index, (role, _) in enumerate(turns) if role == "human"]
    if not humans:
        raise DatasetError(where, found="a chat without a human turn", expected=_TURN)
    first = humans[0]
    reference = next((text for role, text in turns[first:] if role == "model"), None)
    notes = [DEFAULT_NOTE] if not turns[first][1].strip() else []
    notes += [TURNS_NOTE] if len(humans) > 1 else []
    notes += [CONTEXT_NOTE] if any(role == "context" for role, _ in turns) else []
    return Chat(question=turns[first][1], reference=reference, notes=tuple(notes))


def _own_turns(fields: Mapping[str, Any], where: str) -> list[_Turn]:
    """Return the question and the answer that are keys of the row themselves."""
    named = {name: value for name, value in fields.items() if isinstance(value, (str, list))}
    questions = [name for name in named if _QUESTION.fullmatch(name) and not _OTHER.fullmatch(name)]
    if "text" in named and "question_id" in fields:  # the question files of LLaVA
        questions.append("text")
    if "instruction" in questions and "input" in questions:  # Alpaca
        texts = [_text(named[name], f"{where} {name}") for name in ("instruction", "input")]
        questions, asked = ["instruction"], ["\n".join(texts)]
    else:
        questions = [name for name in questions if name != "input"] or questions
        asked = [text for name in questions for text in _texts(named[name], f"{where} {name}")]
    if len(questions) > 1:
        raise DatasetError(where, found=f"several questions ({', '.join(questions)})", expected="one key of a question")
    answers = [
        name for name in named if _ANSWER.fullmatch(name) and name not in questions and not _OTHER.fullmatch(name)
    ]
    if not questions:
        if unclear := [name for name in (*answers, "text") if name in named and isinstance(named[name], str)]:
            raise DatasetError(where, found=f"{unclear[0]} without a question", expected="a question, or no chat")
        return []
    reply = _texts(named[answers[0]], f"{where} {answers[0]}")[:1] if answers else []
    return [("human", asked[0]), *(("model", text) for text in reply), *(("human", text) for text in asked[1:])]


def _turns(value: Any, where: str) -> Iterator[_Turn]:
    if isinstance(value, str):
        try:
            value = json.loads(value)  # tables without nested columns hold a chat as JSON
        except (ValueError, RecursionError):
            raise DatasetError(where, found="text", expected=f"a list of turns: {_TURN}") from None
    if isinstance(value, dict):
        value = _rows_of_columns(value)
    if not isinstance(value, list):
        raise DatasetError(where, found=type(value).__name__, expected=f"a list of turns: {_TURN}")
    for number, turn in enumerate(value):
        at = f"{where} turn {number}"
        if isinstance(turn, list) and turn and all(isinstance(part, (dict, list)) for part in turn):
            yield from _turns(turn, at)
        elif isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn):
            yield from (("human", turn[0]), ("model", turn[1]))
        elif isinstance(turn, dict):
            yield from _turn(turn, at)
        else:
            raise DatasetError(at, found=type(turn).__name__, expected=_TURN)


def _is_chat(value: Any) -> bool:
    """Return whether a value under an unknown key is a list of turns with speakers."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return False
    names = [{_key(name): each for name, each in turn.items()} for turn in value]
    return all(any(_key(turn.get(name)) in _HUMAN | _MODEL | _CONTEXT for name in _SPEAKERS) for turn in names)


def _rows_of_columns(value: dict[str, Any]) -> list[Any]:
    """Return the turns of a dict: one turn, or a list for each key (a ``Sequence`` of the library datasets)."""
    lists = [column for column in value.values() if isinstance(column, list)]
    if len(lists) < 2 or len(lists) != len(value) or len({len(column) for column in lists}) != 1:
        return [value]
    return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]


def _turn(turn: Mapping[str, Any], where: str) -> Iterator[_Turn]:
    fields = {_key(name): value for name, value in turn.items()}
    speaker = next((fields[name] for name in _SPEAKERS if fields.get(name) is not None), None)
    if speaker is not None:
        role = _role(speaker, where)
        named = next((name for name in _TEXTS if name in fields), None)
        if role == "context" or (role == "model" and (named is None or fields[named] is None)):
            yield "context", ""  # a call of a tool has no text
        elif named is None:
            raise DatasetError(where, found=f"keys {', '.join(fields)[:80]}", expected=_TURN)
        else:
            yield role, _text(fields[named], where)
        return
    exchange = [(_pair_role(name), value) for name, value in fields.items()]
    known = [(role, value) for role, value in exchange if role is not None and value is not None]
    if not known:
        raise DatasetError(where, found=f"keys {', '.join(fields)[:80] or 'none'}", expected=_TURN)
    for role, value in sorted(known, key=lambda pair: pair[0] != "human"):
        yield role, _text(value, where)


def _role(speaker: Any, where: str) -> _Role:
    if isinstance(speaker, dict):
        speaker = speaker.get("role")
    name = _key(speaker) if isinstance(speaker, str) else ""
    for role, names in (("human", _HUMAN), ("model", _MODEL), ("context", _CONTEXT)):
        if name in names:
            return role  # type: ignore[return-value]  # mypy widens the literals of the table
    raise DatasetError(where, found=f"the speaker {speaker!r:.40}", expected="human, user, gpt, assistant or system")


def _pair_role(name: str) -> _Role | None:
    if name in _HUMAN or _QUESTION.fullmatch(name):
        return "human"
    return "model" if name in _MODEL or _ANSWER.fullmatch(name) else None


def _texts(value: Any, where: str) -> list[str]:
    """Return the texts of one question, or of a list of questions."""
    if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return list(value)
    return [_text(value, where)]


def _text(value: Any, where: str) -> str:
    """Return the text of a turn: a string, or the text parts of a list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = value["parts"] if isinstance(value.get("parts"), list) else [value]
    if not isinstance(value, list):
        raise DatasetError(where, found=type(value).__name__, expected="text")
    return "\n".join(_part_texts(value, where))


def _part_texts(parts: Iterable[Any], where: str) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        kind = str(part.get("type", "text")).lower() if isinstance(part, dict) else type(part).__name__
        if kind in _MEDIA_PARTS:
            continue
        text = next((part[name] for name in ("text", *_TEXTS) if name in part), None) if kind in _TEXT_PARTS else None
        if not isinstance(text, str):
            raise DatasetError(where, found=f"a part of type {kind!r:.40}", expected="text")
        yield text


def _key(name: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())
