"""The search: an algorithm over values. It imports neither the supernet nor the devices."""

from pocketformer.search.frontier import Action, frontier, regrowth
from pocketformer.search.joint import Evaluated, Evaluator, Move, Score, State, choose, joint_search, regrow
from pocketformer.search.objective import Objective, mes

__all__ = [
    "Action",
    "Evaluated",
    "Evaluator",
    "Move",
    "Objective",
    "Score",
    "State",
    "choose",
    "frontier",
    "joint_search",
    "mes",
    "regrow",
    "regrowth",
]
