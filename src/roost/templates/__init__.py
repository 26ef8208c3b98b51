"""Templates: recipes (``templates/<name>/``) and how they become images in the pool.

A recipe is ``recipe.toml`` with, beside it, ``files/`` laid over the tree and ``customize.sh`` run in it.
Building is mmdebstrap, those two, then ``mke2fs -d`` with everything fixed that can be, so that the same
recipe and packages give the same content digest. The agent is put in last, on a reflink: another agent
costs no new build. ``recipe.py`` is pure, ``sources.py`` finds the host's mirror, ``build.py`` does the
work and ``library.py`` is what the services call.
"""

from roost.templates.library import Library
from roost.templates.recipe import Recipe

__all__ = ["Library", "Recipe"]
