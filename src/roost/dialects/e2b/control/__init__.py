"""E2B's control plane: sandboxes, snapshots, templates, volumes and secrets, as calls of the services.

``sandboxes`` (their life), ``network`` (what they may reach), ``snapshots``, ``templates`` (names, tags, builds),
``volumes``, ``secrets``; ``shapes`` writes answers, ``bodies`` reads what is asked.
"""
