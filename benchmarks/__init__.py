"""Scripts of measurements, and their results."""
