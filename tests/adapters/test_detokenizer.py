"""Pieces of text as tokens come."""

from __future__ import annotations

from typing import Any

from unfuse.adapters.detokenizer import IncrementalDetokenizer


def test_joined_deltas_are_the_text(demo_model: Any) -> None:
    """With characters of several bytes (one token a byte in this tokenizer), and blanks at both ends."""
    from unfuse.models.eventgpt.tokenizer import load_tokenizer
    from unfuse.samples.demo import demo_checkpoint

    tokenizer = load_tokenizer(demo_checkpoint(), demo_model.adapter.model.config)
    for text in ("A box moves, and 3 discs do not.", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 end", "  a  b \n\n c "):
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        detokenizer = IncrementalDetokenizer(demo_model.adapter.decode_text)
        out = [detokenizer.add(i) for i in ids]
        assert "\ufffd" not in "".join(out)
        assert "".join([*out, detokenizer.end()]) == demo_model.adapter.decode_text(ids)
        shorter = IncrementalDetokenizer(demo_model.adapter.decode_text)
        texts = [shorter.add(i) for i in ids[:-2]]
        assert "".join([*texts, shorter.end()]) == demo_model.adapter.decode_text(ids[:-2])


def test_the_cost_of_a_token_does_not_grow() -> None:
    lengths = []

    def decode(ids: tuple[int, ...]) -> str:
        lengths.append(len(ids))
        return " ".join(map(str, ids))

    detokenizer = IncrementalDetokenizer(decode)
    assert "".join(detokenizer.add(i) for i in range(500)) == " ".join(map(str, range(500)))
    assert max(lengths) <= 2
