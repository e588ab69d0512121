"""Many samples as fast as the hardware allows: ``unfuse run``.

``scenes`` is what stages 1 and 2 make of a scene, ``workers`` runs that in processes, ``flow`` runs stages 3 and 4 and
overlaps all of it, ``device`` puts these together for one device, ``job`` files the answers.
"""
