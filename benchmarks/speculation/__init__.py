"""Benchmark of speculative decoding with recorded acceptance: see ``__main__``."""
