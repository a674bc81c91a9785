"""The search: an algorithm over values. It imports neither the supernet nor the devices."""

from pocketformer.search.beam import beam_search
from pocketformer.search.frontier import Action, frontier, regrowth
from pocketformer.search.joint import Evaluated, Evaluator, Move, Score, State, choose, joint_search
from pocketformer.search.objective import Objective, mes
from pocketformer.search.reverse import regrow, reversible_search
from pocketformer.search.walk import Walk

__all__ = [
    "Action",
    "Evaluated",
    "Evaluator",
    "Move",
    "Objective",
    "Score",
    "State",
    "Walk",
    "beam_search",
    "choose",
    "frontier",
    "joint_search",
    "mes",
    "regrow",
    "regrowth",
    "reversible_search",
]
