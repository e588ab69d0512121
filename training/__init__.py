"""How the demo model is made: tokenizer, scenes on a device, training, evaluation."""
