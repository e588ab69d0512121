"""``unfuse serve``: an OpenAI-compatible endpoint that encodes a scene once and answers many questions about it.

::

    HTTP request -> guard -> app -> conversation -> scenes -> sandbox_client (a process) -> engine_loop (one thread)

``guard`` checks and limits requests, ``app`` has the paths, ``conversation`` converts messages to one question about
one scene, ``scenes`` caches encoded scenes, ``sandbox_client`` reads the frames of an untrusted file in a
process that can be killed (``sandbox_worker``), and ``engine_loop`` owns the model and schedules the answers.
"""
