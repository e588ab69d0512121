"""Triton kernels of Stage 4, each with what it computes in its docstring and a torch reference in the tests.

Every kernel of a decode step may be launched before the one ahead of it has finished (programmatic dependent launch,
Hopper): it loads weights, which nothing writes, and only then waits. Since each waits, all that came before the one
ahead has finished too.
"""
