"""Networks that are this project's own, and what identifies a model."""
