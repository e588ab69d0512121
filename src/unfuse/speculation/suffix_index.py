"""Index over token sequences that finds the longest suffix of a text that was seen before, and how it went on.

It is a suffix automaton of all sequences (Blumer et al., Theoretical Computer Science 40, 1985; for several sequences:
Mohri et al., Theoretical Computer Science 410, 2009) with the number of occurrences of each state, in flat arrays of
about 80 bytes a token. Adding a token takes time in proportion to the number of its suffixes with different
occurrences, and a drafted token takes time in proportion to the different tokens that followed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from unfuse.compiled import compiled

_ROOT: Final = 0
_NONE: Final = -1
_STATES_PER_TOKEN: Final = 2
_EDGES_PER_TOKEN: Final = 3
_FIRST_ROOM: Final = 1024
"""Tokens that the arrays have room for at first."""


@dataclass(slots=True)
class Match:
    """Longest suffix of a text that occurs in the index."""

    state: int = _ROOT
    length: int = 0
    """Tokens of the suffix."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that followed the same text most often."""

    token_ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    """Share of earlier occurrences with this token next, counting one more occurrence without a next token."""


class SuffixIndex:
    """Suffix automaton of token sequences. Token ids are at least 0 and below ``vocabulary``."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary
        self._roots: NDArray[np.int32] = np.full(vocabulary, _NONE, np.int32)
        """Targets of the root's edges: nearly every token occurs there, and a list would be long."""
        self.clears = 0
        """Times that all states were removed: a ``Match`` does not outlive that."""
        self.clear()

    def clear(self) -> None:
        """Forget all sequences."""
        self._roots.fill(_NONE)
        self._states: NDArray[np.int32] = np.full((4, _STATES_PER_TOKEN * _FIRST_ROOM + 1), _NONE, np.int32)
        """Length of the longest string, suffix link, occurrences and first edge of each state."""
        self._edges: NDArray[np.int32] = np.full((3, _EDGES_PER_TOKEN * _FIRST_ROOM), _NONE, np.int32)
        """Token, target and next edge of the same state."""
        self._sizes: NDArray[np.int32] = np.array([1, 0], np.int32)
        """States and edges in use."""
        self._states[:, _ROOT] = 0, _NONE, 0, _NONE
        self._room, self._tokens = _FIRST_ROOM, 0
        self.clears += 1

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self._roots.nbytes + self._states.nbytes + self._edges.nbytes

    def add(self, token_ids: NDArray[np.int64], last: int = _ROOT) -> int:
        """Add tokens to the sequence that ends in state ``last``; the root begins a new sequence.

        Returns:
            The state of the whole sequence, for the next tokens of it. Its suffix link holds the longest suffix that
            occurred before.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        self._check(token_ids)
        self._reserve(len(token_ids))
        state: int = _add(token_ids, last, self._roots, self._states, self._edges, self._sizes)
        return state

    def earlier(self, state: int) -> Match:
        """Return the longest suffix of a sequence, given by its state, that also occurs earlier in the index."""
        link = max(int(self._states[1, state]), _ROOT)
        return Match(link, int(self._states[0, link]))

    def advance(self, match: Match, token_ids: NDArray[np.int64]) -> None:
        """Move a match on by tokens of its text.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        self._check(token_ids)
        match.state, match.length = _advance(
            match.state, match.length, token_ids, self._roots, self._states, self._edges
        )

    def draft(self, match: Match, limit: int, end_ids: NDArray[np.int64]) -> Draft:
        """Return up to ``limit`` tokens: each the most frequent one after the longest suffix, up to an end token."""
        tokens, probabilities = np.empty(limit, np.int64), np.empty(limit, np.float64)
        count = _draft(match.state, match.length, end_ids, tokens, probabilities, self._states, self._edges)
        return Draft(tokens[:count], probabilities[:count])

    def _check(self, token_ids: NDArray[np.int64]) -> None:
        """Refuse ids outside the vocabulary: compiled code would use them as array indices."""
        if _outside(token_ids, self._vocabulary):
            found = f"{token_ids.min()} to {token_ids.max()}"
            raise ValueError(f"token ids: found {found}, expected at least 0 and below {self._vocabulary}")

    def _reserve(self, tokens: int) -> None:
        self._tokens += tokens
        if self._tokens <= self._room:
            return
        while self._room < self._tokens:
            self._room *= 2
        self._states = _grown(self._states, _STATES_PER_TOKEN * self._room + 1)
        self._edges = _grown(self._edges, _EDGES_PER_TOKEN * self._room)


@functools.cache
def compile_functions() -> None:
    """Compile what an index calls, or read it from the cache on the disk: the first answer must not wait for it."""
    index, tokens = SuffixIndex(4), np.array([1, 2, 1], np.int64)
    state, match = index.add(tokens), Match()
    index.advance(match, tokens)
    index.draft(index.earlier(state), 1, np.array([3], np.int64))


def _grown(array: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    larger = np.full((len(array), columns), _NONE, np.int32)
    larger[:, : array.shape[1]] = array
    return larger


@compiled
def _outside(tokens: Any, vocabulary: int) -> bool:
    outside = False
    for token in tokens:
        outside |= token < 0 or token >= vocabulary
    return outside


@compiled
def _find(state: int, token: int, roots: Any, states: Any, edges: Any) -> int:
    """Edge target of a state; at the root the target itself is stored."""
    if state == 0:
        return int(roots[token])
    edge = states[3, state]
    while edge != -1:
        if edges[0, edge] == token:
            return int(edges[1, edge])
        edge = edges[2, edge]
    return -1


@compiled
def _link(state: int, token: int, target: int, roots: Any, states: Any, edges: Any, sizes: Any) -> None:
    """Set the target of a state's edge; add the edge if it does not exist."""
    if state == 0:
        roots[token] = target
        return
    edge = states[3, state]
    while edge != -1:
        if edges[0, edge] == token:
            edges[1, edge] = target
            return
        edge = edges[2, edge]
    edge = sizes[1]
    sizes[1] = edge + 1
    edges[0, edge] = token
    edges[1, edge] = target
    edges[2, edge] = states[3, state]
    states[3, state] = edge


@compiled
def _clone(original: int, length: int, roots: Any, states: Any, edges: Any, sizes: Any) -> int:
    """State for the shorter strings of another state, with its edges and occurrences."""
    state = sizes[0]
    sizes[0] = state + 1
    states[0, state] = length
    states[1, state] = states[1, original]
    states[2, state] = states[2, original]
    states[3, state] = -1
    edge = states[3, original]
    while edge != -1:
        _link(state, edges[0, edge], edges[1, edge], roots, states, edges, sizes)
        edge = edges[2, edge]
    states[1, original] = state
    return int(state)


@compiled
def _add(tokens: Any, last: int, roots: Any, states: Any, edges: Any, sizes: Any) -> int:
    for token in tokens:
        target = _find(last, token, roots, states, edges)
        parent = last
        if target == -1:
            state = sizes[0]
            sizes[0] = state + 1
            states[0, state] = states[0, last] + 1
            states[1, state] = 0
            states[2, state] = 0
            states[3, state] = -1
            while parent != -1 and _find(parent, token, roots, states, edges) == -1:
                _link(parent, token, state, roots, states, edges, sizes)
                parent = states[1, parent]
            if parent != -1:
                target = _find(parent, token, roots, states, edges)
        else:
            state = -1
        if target != -1:
            same = target
            if states[0, target] != states[0, parent] + 1:
                same = _clone(target, states[0, parent] + 1, roots, states, edges, sizes)
                while parent != -1 and _find(parent, token, roots, states, edges) == target:
                    _link(parent, token, same, roots, states, edges, sizes)
                    parent = states[1, parent]
            if state == -1:
                state = same
            else:
                states[1, state] = same
        ancestor = state
        while ancestor > 0:
            states[2, ancestor] += 1
            ancestor = states[1, ancestor]
        last = state
    return int(last)


@compiled
def _shortened(state: int, length: int, states: Any) -> int:
    """Return the state of a match. A later clone may have taken the match over from ``state``."""
    while state != 0 and length <= states[0, states[1, state]]:
        state = states[1, state]
    return int(state)


@compiled
def _advance(state: int, length: int, tokens: Any, roots: Any, states: Any, edges: Any) -> tuple[int, int]:
    state = _shortened(state, length, states)
    for token in tokens:
        target = _find(state, token, roots, states, edges)
        while target == -1 and state != 0:
            state = states[1, state]
            length = states[0, state]
            target = _find(state, token, roots, states, edges)
        if target == -1:
            state, length = 0, 0
        else:
            state, length = target, length + 1
    return int(state), int(length)


@compiled
def _draft(state: int, length: int, ends: Any, tokens: Any, probabilities: Any, states: Any, edges: Any) -> int:
    state = _shortened(state, length, states)
    count = 0
    while count < len(tokens):
        # Every occurrence of the longest suffix may be at the end of a sequence, without a next token.
        while state != 0 and states[3, state] == -1:
            state = states[1, state]
        if state == 0:
            break
        edge = states[3, state]
        best, most, total = -1, 0, 1
        while edge != -1:
            occurrences = states[2, edges[1, edge]]
            total += occurrences
            if occurrences > most:
                best, most = edge, occurrences
            edge = edges[2, edge]
        tokens[count] = edges[0, best]
        probabilities[count] = most / total
        state = edges[1, best]
        count += 1
        if np.any(ends == tokens[count - 1]):
            break
    return count
