"""Offline inference over a dataset: ``unfuse run``.

``scenes`` runs stages 1 and 2 of a scene, ``workers`` runs that in processes, ``flow`` runs stages 3 and 4 and overlaps
all stages, ``device`` joins these parts for one device, ``job`` runs a dataset and records the answers.
"""
