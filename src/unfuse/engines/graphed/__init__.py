"""Engine ``graphed``: Stage 4 at the speed of the memory.

``structure`` finds a LLaMA in a model and puts its weights side by side; ``network`` runs it on any number of rows
through ``products`` and ``kernels``; ``tuning`` chooses how; ``caches`` holds keys and values; ``capture`` replays a
step as one graph; ``engine`` answers.
"""
