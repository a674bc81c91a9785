"""Supernets: elastic layers with shared weights (V2), soft choices between blocks (V1), and what a step samples."""

from pocketformer.supernet.metapath import MetaPathSupernet
from pocketformer.supernet.supernet import Supernet

__all__ = ["MetaPathSupernet", "Supernet", "new_supernet"]


def new_supernet(space, num_classes: int, **options) -> Supernet | MetaPathSupernet:
    """The untrained supernet of a space, with one head."""
    if space.metapath:
        return MetaPathSupernet(space, num_classes, **options)
    return Supernet(space, num_classes, distilled=False, **options)
