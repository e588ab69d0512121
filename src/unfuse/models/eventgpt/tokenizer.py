"""Loads and saves the tokenizer of an EventGPT folder, with the event tokens that the published inference adds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from unfuse.errors import CheckpointError
from unfuse.models.eventgpt.configuration_eventgpt import EventChatConfig
from unfuse.models.eventgpt.prompt import END_TOKEN, PATCH_TOKEN, START_TOKEN
from unfuse.models.pretrained import from_pretrained


def load_tokenizer(path: str | Path, config: EventChatConfig, **kwargs: Any) -> Any:
    """Return the folder's tokenizer with the event tokens of the two config flags, in the published order.

    A tokenizer without these tokens would silently split ``<ev_start>``.

    Raises:
        CheckpointError: the tokenizer is not readable, or needs remote code.
    """
    written = _tokenizer_config(path)
    # transformers 4.37 reads an absent `legacy` as true, 5.x as false, and the ids differ.
    legacy = True if written.get("legacy") is None else bool(written["legacy"])
    tokenizer = from_pretrained(AutoTokenizer, path, legacy=legacy, **kwargs)
    tokenizer.legacy = legacy
    if config.mm_use_im_patch_token:
        tokenizer.add_tokens([PATCH_TOKEN], special_tokens=True)
    if config.mm_use_im_start_end:
        tokenizer.add_tokens([START_TOKEN, END_TOKEN], special_tokens=True)
    return tokenizer


def model_vocabulary(tokenizer: Any) -> int:
    """Return the number of embedding rows in the published code: one for each token id."""
    return len(tokenizer)


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Write the published layout: ``tokenizer.model``, ``added_tokens.json`` and a config that keeps ``legacy``.

    transformers 5 writes ``tokenizer.json`` instead and drops ``legacy``; reading that back gives other ids.

    Raises:
        CheckpointError: the sentencepiece file of the tokenizer no longer exists.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = _sentencepiece_file(tokenizer)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    if source.resolve() != (folder / "tokenizer.model").resolve():
        shutil.copyfile(source, folder / "tokenizer.model")
    added = {str(token): index for index, token in sorted(tokenizer.added_tokens_decoder.items())}
    special = [token for token in added if token in (PATCH_TOKEN, START_TOKEN, END_TOKEN)]
    config = _tokenizer_config(folder) | {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": bool(tokenizer.legacy),
        "add_bos_token": True,
        "add_eos_token": False,
        "sp_model_kwargs": {},
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "additional_special_tokens": special,
        "added_tokens_decoder": {
            str(index): {
                "content": str(token),
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for index, token in sorted(tokenizer.added_tokens_decoder.items())
        },
    }
    for name in ("backend", "is_local", "extra_special_tokens", "local_files_only", "processor_class"):
        config.pop(name, None)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        config[name] = str(getattr(tokenizer, name)) if getattr(tokenizer, name) is not None else None
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "added_tokens.json", {token: added[token] for token in special})
    roles = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if config[name]}
    _write(folder / "special_tokens_map.json", roles | {"additional_special_tokens": special})


def _sentencepiece_file(tokenizer: Any) -> Path:
    folder = Path(tokenizer.name_or_path)
    recorded = getattr(tokenizer, "vocab_file", None) or tokenizer.init_kwargs.get("vocab_file")
    for candidate in (folder / "tokenizer.model", Path(str(recorded)) if recorded else None):
        if candidate is not None and candidate.is_file():
            return candidate
    raise CheckpointError(
        f"tokenizer of {folder}",
        found="no tokenizer.model",
        expected="the sentencepiece file it was loaded from",
    )


def _tokenizer_config(path: str | Path) -> dict[str, Any]:
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        return dict(get_tokenizer_config(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/tokenizer_config.json", found=error, expected="a JSON object") from None


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
