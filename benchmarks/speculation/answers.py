"""Recorded answers: the token ids that a real model wrote, in the order of its test set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

END = 2
"""End token of LLaMA's vocabulary."""


def read_answers(path: Path) -> dict[str, list[list[int]]]:
    """Read a file of recorded answers: ``{"rows": [{"eventgpt": [ids], "video_llava": [ids]}, ...]}``.

    Returns:
        The answers by model, in the order of the rows.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {model: [row[model] for row in rows if len(row[model]) > 1] for model in ("eventgpt", "video_llava")}


def scenarios(folder: Path) -> dict[str, list[list[int]]]:
    """Return the lists of answers that are decoded one after the other, with an empty history at first."""
    windows = read_answers(folder / "dsec_1s_1100.json")
    questions = read_answers(folder / "dsec_10_windows_10_questions.json")["eventgpt"]
    different = [list(answer) for answer in dict.fromkeys(map(tuple, windows["eventgpt"]))]
    random = np.random.default_rng(0)
    return {
        "EventGPT, first 200": windows["eventgpt"][:200],
        "EventGPT, all 1,100": windows["eventgpt"],
        f"EventGPT, its {len(different)} different answers": different,
        "Video-LLaVA, first 200": windows["video_llava"][:200],
        "10 windows x 10 questions": questions,
        "answers that repeat nothing": [random.integers(1000, 30000, 46).tolist() for _ in range(40)],
    }
