"""Disks: one pool where every image, size variant and machine disk shares blocks by reflink.

``pool.py`` makes and mounts the pool (the data directory itself where it can reflink, else a loop-backed
XFS file), ``images.py`` keeps immutable images with their manifests, ``disks.py`` the machines' disks and
what is known of each, ``mounting.py`` is the only way a disk is mounted on the host, and ``service.py``
puts them together as the engine's ``Storage``. Drivers call ``mounting``; templates call ``images``.
"""

from roost.storage.interface import Image, PoolUsage, Storage
from roost.storage.service import PoolStorage

__all__ = ["Image", "PoolStorage", "PoolUsage", "Storage"]
