"""What the joint search is compared with: each a class with one interface, `moves` and `result`, like `search.Walk`."""

from pocketformer.search.alternatives.evolution import Evolution
from pocketformer.search.alternatives.nsga2 import Nsga2
from pocketformer.search.alternatives.proposing import Proposing, Round
from pocketformer.search.alternatives.pruning import Pruning
from pocketformer.search.alternatives.random_search import RandomSearch
from pocketformer.search.alternatives.uniform import Uniform
from pocketformer.search.alternatives.v1_scale import V1Scale
from pocketformer.search.alternatives.v1_slimming import V1Slimming
from pocketformer.search.alternatives.window import Window

__all__ = [
    "Evolution",
    "Nsga2",
    "Proposing",
    "Pruning",
    "RandomSearch",
    "Round",
    "Uniform",
    "V1Scale",
    "V1Slimming",
    "Window",
]
