"""Decoders of event files that need a third-party library, run in a process of their own.

These libraries have aborted, hung and returned wrong events on damaged files. ``python -m unfuse.decoders`` is the
process; ``events.readers.decoder_client`` starts it, limits its memory and time, and validates its replies. A module
here imports numpy and the one library that it needs, nothing else.
"""
