"""Compared with a search through all sequences, token by token."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.speculation.suffix_index import Match, SuffixIndex

VOCABULARY = 5
NO_END = np.array([], np.int64)
sequences = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12), min_size=1, max_size=8)


def array(tokens):
    return np.array(tokens, np.int64)


def longest_suffix(text, seen):
    """Return the length of the longest suffix of ``text`` that occurs in a sequence."""
    return max(n for n in range(len(text) + 1) if any(occurrences(text[len(text) - n :], each) for each in seen))


def occurrences(part, text):
    return [at + len(part) for at in range(len(text) - len(part) + 1) if text[at : at + len(part)] == part]


def continuations(part, seen):
    return Counter(each[at] for each in seen for at in occurrences(part, each) if at < len(each))


def index_of(seen):
    index = SuffixIndex(VOCABULARY)
    for each in seen:
        index.add(array(each))
    return index


@given(sequences, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12))
@examples(200)
def test_the_longest_suffix_is_found(seen, text):
    index, match = index_of(seen), Match()
    for end, token in enumerate(text, 1):
        index.advance(match, array([token]))
        assert match.length == longest_suffix(text[:end], seen)


@given(sequences, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12))
@examples(200)
def test_a_drafted_token_is_a_most_frequent_one_after_the_longest_suffix_that_goes_on(seen, text):
    index, match = index_of(seen), Match()
    index.advance(match, array(text))
    draft = index.draft(match, 1, NO_END)
    for length in range(longest_suffix(text, seen), 0, -1):
        following = continuations(text[len(text) - length :], seen)
        if following:
            assert following[int(draft.token_ids[0])] == max(following.values())
            total = sum(following.values())
            assert draft.probabilities[0] == pytest.approx(max(following.values()) / (total + 1))
            return
    assert not len(draft.token_ids)


@given(sequences, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6))
@examples(100)
def test_a_match_survives_sequences_that_are_added_later(seen, text):
    index, match = SuffixIndex(VOCABULARY), Match()
    index.add(array(text))
    index.advance(match, array(text))
    for each in seen:
        index.add(array(each))
    again = Match()
    index.advance(again, array(text))
    ours, theirs = index.draft(match, 4, NO_END), index.draft(again, 4, NO_END)
    assert ours.token_ids.tolist() == theirs.token_ids.tolist()


@given(sequences)
@examples(100)
def test_a_sequence_may_be_added_in_parts(seen):
    index, parts = index_of(seen), SuffixIndex(VOCABULARY)
    for each in seen:
        state = 0
        for token in each:
            state = parts.add(array([token]), state)
            earlier = parts.earlier(state)
            assert earlier.length < len(each)
    for each in seen:
        match, other = Match(), Match()
        index.advance(match, array(each))
        parts.advance(other, array(each))
        assert match.length == other.length
        assert index.draft(match, 3, NO_END).token_ids.tolist() == parts.draft(other, 3, NO_END).token_ids.tolist()


def test_the_earlier_occurrence_of_the_end_of_a_text_is_found():
    index = SuffixIndex(10)
    state = index.add(array([1, 2, 3, 4, 9, 2, 3]))
    match = index.earlier(state)
    assert match.length == 2
    assert index.draft(match, 3, NO_END).token_ids.tolist() == [4, 9, 2]


def test_a_draft_ends_at_an_end_token():
    index = index_of([[1, 2, 3, 4]])
    match = Match()
    index.advance(match, array([1]))
    assert index.draft(match, 9, array([3])).token_ids.tolist() == [2, 3]


def test_the_latest_of_equally_frequent_continuations_is_drafted():
    index = index_of([[1, 2], [1, 3]])
    match = Match()
    index.advance(match, array([1]))
    assert index.draft(match, 1, NO_END).token_ids.tolist() == [3]


def test_memory_of_a_million_tokens():
    index = SuffixIndex(32_001)
    random = np.random.default_rng(0)
    words = random.integers(0, 32_000, (300, 8))
    for _ in range(1000):
        index.add(np.concatenate([[32_000], words[random.integers(0, 300, 125)].ravel()])[:1000])
    assert index.nbytes < 200e6
