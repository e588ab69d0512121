"""The four stages as a Ray Data pipeline, each with a pool of actors of its own: ``unfuse run --ray``.

``rows`` is how values travel between actors, ``stages`` the actors, ``pools`` how many there are and what each is
given, ``connection`` the way to a cluster, ``pipeline`` all of it together. Ray places actors, starts them again, runs
tasks again and keeps the memory in bounds; nothing here schedules anything.
"""
