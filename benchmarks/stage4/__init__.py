"""Measure engine ``graphed`` beside its baselines, in one run."""
