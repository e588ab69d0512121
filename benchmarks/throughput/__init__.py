"""Files to answers: a whole dataset through engines ``graphed`` and ``vllm`` beside the seed's loop."""
