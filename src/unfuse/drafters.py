"""Choice of the drafter of a loaded model, from the options of a user."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unfuse.adapters.base import Adapter
from unfuse.engines import Engine
from unfuse.speculation.drafter import Drafter
from unfuse.speculation.history import History
from unfuse.speculation.history_file import read_history, write_history
from unfuse.speculation.ngram import NGram
from unfuse.speculation.settings import SpeculationSettings


def pick_drafter(
    settings: SpeculationSettings, adapter: Adapter, engine: Engine
) -> tuple[Drafter | None, tuple[str, ...]]:
    """Return the drafter for an engine, or None, with notes about the choice.

    ``auto`` is ``history`` if drafts make the engine faster, and no drafter otherwise. A method that is asked for gets
    a note if drafts do not make the engine faster.

    Raises:
        InputError: the history file is damaged, or belongs to another model.
        FileAccessError: the history file cannot be read.
    """
    support = engine.draft_support
    if settings.method == "off" or (settings.method == "auto" and not support.faster):
        return None, ()
    if not support.verified:
        return None, (f"speculation is off: {support.note}",)
    language = adapter.language
    vocabulary, ends, most = vocabulary_of(language.embed, language.head), adapter.end_ids, settings.draft_tokens
    drafter: Drafter
    if settings.method == "ngram":
        drafter = NGram(vocabulary, ends, draft_tokens=most)
    elif settings.history is None:
        drafter = History(vocabulary, ends, draft_tokens=most)
    else:
        drafter = SavedHistory(vocabulary, ends, settings.history, adapter.fingerprint, draft_tokens=most)
    return drafter, (f"speculation: {support.note}",) if support.note else ()


def vocabulary_of(*modules: Any) -> int:
    """Return the number of token ids that a model embeds or chooses from: the rows of the largest weight."""
    return max(len(module.weight) for module in modules)


class SavedHistory(History):
    """A history that begins with the answers in a file, and is written to the file when it is closed."""

    def __init__(
        self, vocabulary: int, end_ids: Iterable[int], path: Path, fingerprint: str, *, draft_tokens: int | None = None
    ):
        super().__init__(vocabulary, end_ids, draft_tokens=draft_tokens)
        self._path, self._fingerprint = path, fingerprint
        read_history(path, self, fingerprint)

    def close(self) -> None:
        """Write the file.

        Raises:
            FileAccessError: the file cannot be written.
        """
        write_history(self._path, self, self._fingerprint)
