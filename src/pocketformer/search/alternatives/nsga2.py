"""NSGA-II (Deb et al., 2002) by pymoo: accuracy against every cost that has a budget."""

import random
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING

from pocketformer.architecture import SearchSpace, Selection
from pocketformer.errors import UserError
from pocketformer.search.alternatives.proposing import Problem, Proposals, Proposing
from pocketformer.search.alternatives.window import Window
from pocketformer.search.joint import Score

if TYPE_CHECKING:
    import numpy as np

_UNSCORED = Score(0.0, 0.0)  # of a network over budget, whose accuracy decides nothing
_IDLE_GENERATIONS = 50  # that propose nothing new: the population has converged


@dataclass(frozen=True)
class Nsga2(Proposing):
    """A population of `population` genomes, drawn as random search draws, with pymoo's operators for whole numbers.
    Objectives: the error on search (ties by loss) and each budgeted cost's share of its budget. Budgets are
    constraints: a network over budget ranks behind all that hold them, by how far it is over, and is not scored."""

    population: int = 32

    name, how = "nsga2", "individual"

    def __post_init__(self) -> None:
        super().__post_init__()
        if find_spec("pymoo") is None:
            raise UserError("--method nsga2 needs pymoo: pip install 'pocketformer[search]'")

    def propose(self, problem: Problem) -> Proposals:
        algorithm, evaluate = self._begun(problem)
        genes, idle = Genes(problem.space), 0
        seen: dict[Selection, Score] = {}
        while idle < _IDLE_GENERATIONS:
            offspring = algorithm.ask()
            members = [genes.selection(row) for row in offspring.get("X")]
            seen |= {s: _UNSCORED for s in members if not problem.fits(s)}
            new = list(dict.fromkeys(s for s in members if s not in seen))
            if new:
                seen.update(zip(new, (yield new), strict=True))
            idle = 0 if new else idle + 1
            evaluate(offspring, [(member, seen[member]) for member in members])
            algorithm.tell(infills=offspring)

    def _begun(self, problem: Problem):
        import numpy as np
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.problem import Problem as Described
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.problems.static import StaticProblem

        genes, objective = Genes(problem.space), problem.objective
        count, floor = len(objective.budgets), objective.min_mes is not None
        described = Described(
            n_var=len(genes.upper),
            n_obj=1 + count,
            n_ieq_constr=count + floor,
            xl=np.zeros(len(genes.upper)),
            xu=np.array(genes.upper),
            vtype=int,
        )
        algorithm = NSGA2(
            pop_size=self.population,
            sampling=np.array([genes.of(member) for member in self._first(problem)]),
            crossover=SBX(prob=0.9, eta=3, vtype=float, repair=RoundingRepair()),
            mutation=PM(eta=3, vtype=float, repair=RoundingRepair()),
        )
        algorithm.setup(described, termination=("n_gen", 10**9), seed=self.seed, verbose=False)

        def evaluate(offspring, scored: list[tuple[Selection, Score]]) -> None:
            usages = [objective.usage(problem.costs(member)) for member, _ in scored]
            errors = [
                [1 - score.accuracy + 1e-6 * score.loss, *u.values()]
                for (_, score), u in zip(scored, usages, strict=True)
            ]
            over = [[share - 1 for share in u.values()] for u in usages]
            if floor:
                over = [
                    [*row, objective.min_mes - objective.mes(problem.costs(member))]
                    for row, (member, _) in zip(over, scored, strict=True)
                ]
            answers = {"F": np.array(errors), "G": np.array(over)}
            Evaluator().eval(StaticProblem(described, **answers), offspring)

        return algorithm, evaluate

    def _first(self, problem: Problem) -> list[Selection]:
        """Members inside the window, and any others where those are too few."""
        rng = random.Random(f"nsga2 {self.seed}")
        inside = islice(Window(problem.objective).draws(problem.space, problem.costs, rng), self.population)
        members = dict.fromkeys(inside)
        tries = 0
        while len(members) < self.population and tries < 100 * self.population:  # a toy may have fewer members
            members[problem.space.sample_selection(rng)] = None
            tries += 1
        return list(members)


class Genes:
    """A selection as whole numbers: of each stage its width's index, then of each slot 0 (left out) or 1 (attention)
    or 1 and the expansion's index (FFN)."""

    def __init__(self, space: SearchSpace):
        self.space = space
        self.upper: list[int] = []
        for offer in space.stages:
            slots = (1 if offer.is_attention(i) else len(space.expansions) for i in range(offer.slots))
            self.upper += [len(offer.widths) - 1, *slots]

    def of(self, selection: Selection) -> list[int]:
        found = []
        for j, offer in enumerate(self.space.stages):
            found.append(offer.widths.index(selection.widths[j]))
            for slot in range(offer.slots):
                if slot not in selection.kept[j]:
                    found.append(0)
                elif offer.is_attention(slot):
                    found.append(1)
                else:
                    found.append(1 + self.space.expansions.index(selection.expansion(j, slot)))
        return found

    def selection(self, genes: "np.ndarray") -> Selection:
        """A stage without any FFN keeps its last, at the smallest expansion."""
        rest = iter(int(gene) for gene in genes)
        widths, kept, expansions = [], [], []
        for offer in self.space.stages:
            widths.append(offer.widths[next(rest)])
            slots = dict(enumerate(islice(rest, offer.slots)))
            if not any(gene for slot, gene in slots.items() if not offer.is_attention(slot)):
                slots[offer.slots - 1] = 1
            kept.append(tuple(slot for slot, gene in slots.items() if gene))
            ffns = (gene for slot, gene in slots.items() if gene and not offer.is_attention(slot))
            expansions.append(tuple(self.space.expansions[gene - 1] for gene in ffns))
        return Selection(self.space, tuple(widths), tuple(kept), tuple(expansions))
