"""Samples, datasets and the built-in demo."""

from unfuse.samples.dataset import Dataset, read_dataset
from unfuse.samples.question import Question, clean_question
from unfuse.samples.sample import Sample

__all__ = ["Dataset", "Question", "Sample", "clean_question", "read_dataset"]
