"""True numbers: clock, warm-up, environment."""
