"""Batch inference as a Ray Data pipeline with an actor pool for each stage: ``unfuse run --ray``.

``rows`` converts values to table rows and back, ``stages`` has the actors, ``pools`` their numbers and resources,
``connection`` connects to a cluster, and ``pipeline`` joins these parts. Ray places and restarts actors, repeats tasks
and limits memory; this package schedules nothing.
"""
