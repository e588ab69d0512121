"""Values between stages that are more than their fields."""

from __future__ import annotations

import pytest
import torch

from unfuse.stages import Prompt


def test_embeddings_given_as_a_call_are_made_once_and_only_on_access():
    made = []

    def make():
        made.append(True)
        return torch.ones(1, 4, 2)

    prompt = Prompt(inputs_embeds=make, token_keys=(5, -1, 6, 0))
    assert (prompt.length, prompt.text_after(2), made) == (4, (6, 0), [])
    assert prompt.inputs_embeds is prompt.inputs_embeds
    assert (made, prompt.length) == ([True], 4)
    assert prompt.text_after(2) is None, "whoever has the embeddings uses them"


def test_text_is_not_all_where_features_or_positions_of_several_axes_are():
    prompt = Prompt(inputs_embeds=lambda: torch.ones(1, 3, 2), token_keys=(5, -1, 6))
    assert prompt.text_after(1) is None
    turned = Prompt(
        inputs_embeds=lambda: torch.ones(1, 3, 2), token_keys=(5, 6, 7), position_ids=torch.zeros(3, 1, 3).long()
    )
    assert turned.text_after(1) is None


def test_embeddings_given_as_a_tensor_are_that_tensor():
    embeds = torch.ones(1, 3, 2)
    prompt = Prompt(inputs_embeds=embeds)
    assert prompt.inputs_embeds is embeds
    assert (prompt.length, prompt.text_after(0)) == (3, None)


def test_embeddings_are_not_left_out():
    with pytest.raises(TypeError, match="inputs_embeds"):
        Prompt(token_keys=(1,))
