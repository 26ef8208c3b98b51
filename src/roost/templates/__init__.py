"""Templates: recipes and how they become images in the pool.

A shipped recipe (``templates/<name>/``) is ``recipe.toml`` with, beside it, ``files/`` laid over the tree and
``customize.sh`` run in it: mmdebstrap, those two, then ``mke2fs -d`` with everything fixed that can be (``recipe``,
``sources``, ``tree``, ``build``). Or it is, like every tenant's, a Dockerfile, with a ``roost.toml`` beside it:
``dockerfile``, ``substitute``, ``roosttoml`` and ``plan`` say what it means, ``pack``, ``context`` and ``copying`` are
the files it copies, ``keys`` what a layer is found by; all of these are pure. The steps are done in a machine, by
``services.builds``. ``base`` and ``oci`` are what a build begins from. ``library`` is what the services call.
"""
