"""Engine ``graphed`` beside its baselines, in one run."""
