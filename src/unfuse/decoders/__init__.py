"""Event files through libraries of others, in a process of their own.

Such decoders have aborted, hung, and answered wrongly on damaged files. ``python -m unfuse.decoders`` is the process:
it takes requests on its input and writes events into a file that it was handed; ``events.readers.child`` is the other
end, which limits its memory and time and believes nothing it says. Nothing here imports more than numpy and the one
library that is needed.
"""
