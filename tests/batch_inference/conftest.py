"""Small work for tests of the pipeline: demo scenes, and a model that takes no time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from unfuse.batch_inference.job import Work
from unfuse.samples.demo import demo_dataset


@pytest.fixture(scope="session")
def demo_work():
    """Four scenes, three questions each: the rows of one scene are not adjacent."""
    return Work(demo_dataset(max_samples=4), ["What moves?", "Is it raining?", "Which way does the disc move?"])


@pytest.fixture(scope="session")
def expected(demo_work, demo_model):
    """Answer of each question alone, by id."""
    found = {}
    for sample, question in demo_work.rows:
        features = demo_model.encode(sample)
        answer = demo_model.generate(question.text, features, max_new_tokens=8, reuse=False)
        found[question.question_id] = answer
    return found
