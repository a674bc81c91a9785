"""How a supernet is searched, as a command line says it, and the method that it becomes."""

from dataclasses import dataclass, field
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import NAMES, Architecture, SearchSpace
from pocketformer.errors import UserError
from pocketformer.search import Objective, Walk
from pocketformer.search.alternatives import Evolution, Nsga2, Pruning, RandomSearch, Uniform, V1Scale, V1Slimming
from pocketformer.search.alternatives.v1_scale import PerMillisecond
from pocketformer.search.method import Method
from pocketformer.search.trajectory import checked, evaluations
from pocketformer.supernet import MetaPathSupernet, Supernet
from pocketformer.supernet.magnitude import cut_magnitude

PROPOSING = {method.name: method for method in (RandomSearch, Uniform, Evolution, Nsga2)}
SEEDED = ("random", "evolution", "nsga2")
METHODS = ("joint", *PROPOSING, "pruning", "v1-scale", "v1-slimming")
OF_V1 = ("joint", "random", "evolution", "v1-scale", "v1-slimming")  # that know which networks are EfficientFormers


@dataclass(frozen=True)
class Asked:
    """One of `METHODS`. `evaluations`: how many subnets a method that proposes them may score, or the folder of a
    finished search, for as many as that did; `seed` is what it draws by. `walk` and `race` are of the joint search."""

    name: str = "joint"
    evaluations: str | None = None
    seed: int = 0
    walk: Walk = field(default_factory=Walk)
    race: bool = False

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UserError(f"method {self.name!r} is unknown; known: {', '.join(METHODS)}")
        if self.name != "joint" and (self.walk != Walk() or self.race):
            raise UserError("--regrow, --beam and --race are for --method joint")
        if self.name in PROPOSING and self.evaluations is None:
            raise UserError(
                f"--method {self.name} needs --evaluations: a number of subnets, or the folder of a finished search, "
                "for as many as that scored"
            )
        if self.name not in SEEDED and self.seed:
            raise UserError(f"--seed is for --method {', '.join(SEEDED)}: {self.name} draws nothing")
        if self.name not in PROPOSING and self.evaluations is not None:
            raise UserError(f"--evaluations is for --method {', '.join(PROPOSING)}: {self.name} ends by itself")

    def of(self, supernet: Supernet | MetaPathSupernet, objective: Objective) -> Method:
        """Raises `UserError` if the method cannot follow the budgets, or does not know the supernet's space."""
        of_v1 = isinstance(supernet, MetaPathSupernet)
        if of_v1 and self.name not in OF_V1:
            name = supernet.space.name
            raise UserError(f"space {name} is of EfficientFormers (V1); methods for it: {', '.join(OF_V1)}")
        if self.name == "v1-slimming" and not of_v1:
            name = supernet.space.name
            raise UserError(f"--method v1-slimming needs a supernet of EfficientFormers (V1), not of {name}")
        if self.name == "uniform":
            return Uniform(_count(self.evaluations), shape=published_shape(supernet.space))
        if self.name in PROPOSING:
            return PROPOSING[self.name](_count(self.evaluations), self.seed)
        if self.name == "joint":
            return self.walk
        PerMillisecond.of(objective)
        match self.name:
            case "pruning":
                return Pruning(
                    lambda selection, action: cut_magnitude(
                        supernet, selection, action.stage, action.slot, action.value
                    )
                )
            case "v1-scale":
                return V1Scale()
        return V1Slimming(supernet.importances())


def published_shape(space: SearchSpace) -> Architecture | None:
    """The largest published network among a space's members, if there is any."""
    published = [shape for shape in map(Architecture.named, NAMES) if space.contains(shape)]
    return max(published, key=lambda shape: shape.parameters(), default=None)


def _count(evaluations_: str) -> int:
    if evaluations_.isdecimal():
        return int(evaluations_)
    path = Path(evaluations_) / "search.jsonl"
    lines = checked(files.Lines.read(path), path)
    if not any(line["type"] == "end" for line in lines):
        raise UserError(f"--evaluations {evaluations_} is neither a number nor the folder of a finished search")
    return evaluations(lines)
