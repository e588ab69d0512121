"""Where fused models are cut, one module a family."""
