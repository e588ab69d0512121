"""Prompts of models with random weights are nearly as long as those of real ones."""

from unfuse.adapters.random_weights import tokenizer_with
from unfuse.models.eventgpt.prompt import EVENT_INDEX, build_prompt, tokenize_prompt
from unfuse.stages import DEFAULT_QUESTION

EVENTGPT_7B = 55
"""Ids of the default question's prompt by LLaMA's tokenizer, the scene's among them."""


def test_the_default_prompt_is_nearly_as_long_as_llamas():
    tokenizer = tokenizer_with("<image>")
    ids = tokenize_prompt(build_prompt(DEFAULT_QUESTION), tokenizer)
    assert 0 <= EVENTGPT_7B - len(ids) <= 3
    assert ids.count(EVENT_INDEX) == 1
    text = "".join(tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=True).split())
    wanted = "".join(build_prompt(DEFAULT_QUESTION).split())
    assert text == wanted.replace("<ev_start><event><ev_end>", "")
