"""EventGPT's prompt (template ``v1``) and its token ids.

The text is split at ``<event>`` and the halves are tokenised separately. The second half's start token is dropped, and
``-200`` is inserted between the halves.
"""

from __future__ import annotations

from typing import Any, Final

from unfuse.errors import PromptError

EVENT_INDEX: Final = -200
"""Placeholder of the scene in the published code's ids."""
EVENT_TOKEN: Final = "<event>"
PATCH_TOKEN: Final = "<ev_patch>"
START_TOKEN: Final = "<ev_start>"
END_TOKEN: Final = "<ev_end>"

SYSTEM: Final = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
CHAT_TEMPLATE: Final = (
    "{{ '" + SYSTEM.replace("'", "\\'") + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ '" + START_TOKEN + EVENT_TOKEN + END_TOKEN + "\\n' }}{% endif %}{% endfor %}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def build_prompt(question: str) -> str:
    """Return the prompt of one question about one scene."""
    return f"{SYSTEM} USER: {START_TOKEN}{EVENT_TOKEN}{END_TOKEN}\n{question} ASSISTANT:"


def tokenize_prompt(prompt: str, tokenizer: Any, *, placeholder: tuple[int, ...] = (EVENT_INDEX,)) -> list[int]:
    """Return the token ids of a prompt, with ``placeholder`` in the place of ``<event>``.

    Args:
        prompt: text with at most one ``<event>``.
        tokenizer: the checkpoint's, with the event tokens added.
        placeholder: ``(-200,)`` as published, or ``<ev_patch>`` once per feature position.

    Raises:
        PromptError: several ``<event>`` in one prompt.
    """
    halves = prompt.split(EVENT_TOKEN)
    if len(halves) > 2:
        raise PromptError("prompt", found=f"{len(halves) - 1} times {EVENT_TOKEN}", expected="one scene per prompt")
    first, *rest = (tokenizer(half).input_ids for half in halves)
    ids = list(first)
    for half in rest:
        ids += placeholder
        ids += half[1:] if half and half[0] == tokenizer.bos_token_id else half
    return ids
