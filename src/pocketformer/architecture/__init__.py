"""Architectures, selections and search spaces as frozen values, and their costs in closed form. No torch."""

from pocketformer.architecture.architecture import Architecture
from pocketformer.architecture.design import EFFICIENTFORMER, Design
from pocketformer.architecture.published import NAMES
from pocketformer.architecture.selection import Selection, Step
from pocketformer.architecture.space import SPACES, SearchSpace, StageSpace
from pocketformer.architecture.stage import FFN, Attention, Stage

__all__ = [
    "EFFICIENTFORMER",
    "FFN",
    "NAMES",
    "SPACES",
    "Architecture",
    "Attention",
    "Design",
    "SearchSpace",
    "Selection",
    "Stage",
    "StageSpace",
    "Step",
]
