"""``unfuse serve``: an OpenAI-compatible endpoint that encodes a scene once and answers many questions about it.

::

    HTTP request -> guard -> app -> conversation -> scenes -> reading (a process of its own) -> engine_loop (one thread)

``guard`` decides who is let in and how much may come; ``app`` knows the paths; ``conversation`` turns messages into one
question about one scene; ``scenes`` keeps what is encoded; ``reading`` has a stranger's file turned into frames by a
process that can be killed; ``engine_loop`` owns the model.
"""
