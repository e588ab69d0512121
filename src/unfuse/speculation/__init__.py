"""Speculative decoding (Leviathan et al., ICML 2023): drafts of the next tokens, verified by the model in one pass."""
