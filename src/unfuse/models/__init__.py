"""Networks that are this project's own, and identifiers of models."""
