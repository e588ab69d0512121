"""Training of the demo model: tokenizer, scenes on a device, training, evaluation, model card."""
