"""Triton kernels of Stages 3 and 4. The docstring of each launcher gives the formula; the tests have a torch reference.

On Hopper, a kernel may start before the previous kernel has finished (programmatic dependent launch). It first loads
weights, because no kernel writes them, and then waits for the previous kernel. Every kernel waits, so all kernels
before the previous kernel have finished as well.
"""
