"""Measure files to answers: a whole dataset under engines ``graphed`` and ``vllm`` beside the seed's loop."""
