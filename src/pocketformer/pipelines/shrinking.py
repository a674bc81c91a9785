"""After the search: a found network inherits its weights, at once or through the states of its trajectory."""

from dataclasses import dataclass, replace
from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import Architecture, Selection
from pocketformer.errors import UserError
from pocketformer.pipelines.networks import FinalTraining
from pocketformer.pipelines.supernets import load_supernet, weights_of
from pocketformer.progress import say, stage
from pocketformer.runs import read_config
from pocketformer.search.trajectory import checked, path_to, points
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.balance import loss_weights
from pocketformer.training.batches import Share, train_batches
from pocketformer.training.engine import Job, train
from pocketformer.training.mixing import Mixing
from pocketformer.training.targets import Labels
from pocketformer.training.tasks import SandwichTask


@dataclass(frozen=True)
class Searched:
    """A supernet with its `config.json`, and the states of a search on it from the largest subnet to a found one."""

    supernet: Supernet
    config: dict
    states: tuple[Selection, ...]

    @property
    def num_classes(self) -> int:
        return self.config["num_classes"]

    @property
    def found(self) -> Selection:
        return self.states[-1]


def load_searched(folder: Path, architecture: Architecture) -> Searched:
    """Of a folder of `search` or `design`: up to the state that it found, or else the last one, with this architecture
    (at whatever size of images).

    The blocks that this state kept are the ones whose weights it was chosen for; the architecture alone would stand
    for the last blocks of each stage (contract 6.4).
    """
    file, source = folder / "search.jsonl", folder
    if not file.is_file():
        raise UserError(f"{folder} holds no search (search.jsonl): give a folder of search or design")
    lines = checked(files.Lines.read(file), file)
    if not (folder / "supernet" / "model.safetensors").is_file():
        config = read_config(folder)
        source = Path(config["settings"]["supernet"])
        if not source.exists() and (beside := folder.absolute().parent / source.name).exists():
            say(f"note: {folder} searched {source}, which is not there: taking {beside}")
            source = beside
        if config["facts"].get("supernet", known := files.digest(weights_of(source))) != known:
            say(f"note: {source} was trained anew since {folder} searched it")
    supernet, config = load_supernet(source)
    architecture = architecture.with_design(resolution=supernet.space.resolution)
    reached = points(supernet.space, lines)
    # A beam may have kept siblings of one architecture with other blocks: the one found stands in the last line.
    ended = [line["step"] for line in lines if line["type"] == "end"][-1:]
    fitting = [point.step for point in reached if point.selection.architecture == architecture]
    steps = [step for step in ended if step in fitting] or fitting
    if not steps:
        say(f"note: no state of {folder} has that architecture: it takes the last blocks of each stage")
        return Searched(supernet, config, (supernet.space.select(architecture),))
    states = tuple(point.selection for point in path_to(reached, steps[-1]))  # of a beam, those that led to it
    return Searched(supernet, config, states)


@dataclass(frozen=True)
class Walk:
    """Which subnet a step of progressive shrinking trains: each state for `steps` steps, in order."""

    states: tuple[Selection, ...]
    steps: int

    @property
    def roles(self) -> tuple[str]:
        return ("state",)

    def subnets(self, step: int) -> tuple[Selection]:
        return (self.states[min(step // self.steps, len(self.states) - 1)],)


def shrink(searched: Searched, final: FinalTraining, folder: Path, steps: int) -> None:
    """Progressive shrinking: trains each state of the search on labels for `steps` steps before the next one takes
    its weights over, in the supernet itself. Resumes in `folder`; what is done is not done again."""
    supernet, done = searched.supernet, folder / "shrunk.safetensors"
    if not ranks.from_first(done.exists()):
        data, seed, workers = final.data, final.seed, final.workers
        split = data.fit if final.validate else data.final
        batches = train_batches(
            split,
            final.recipe.batch_size,
            supernet.space.resolution,
            final.recipe.augmentation,
            seed,
            share=Share(ranks.rank(), ranks.count()),
            workers=workers,
            balanced=final.recipe.balance == "sampling",
        )
        walk = Walk(searched.states, steps)
        recipe = replace(final.recipe, epochs=len(walk.states) * steps / batches.steps_per_epoch, freeze=0)
        weights = loss_weights(recipe.balance, split, supernet.num_classes)
        task = SandwichTask(supernet, walk, Labels(recipe.label_smoothing, weights))
        mix = Mixing(recipe, supernet.num_classes, seed) if recipe.mixes else None
        with stage("shrink step by step", len(walk.states) * steps) as progress:
            job = Job(folder / "shrinking", "shrink", final.ledger, progress, final.keep)
            state = train(task, batches, recipe, job, seed, final.compute, mix)
        if ranks.first():
            checkpoint.save_tensors(done, state.averaged)
        ranks.wait()
    checkpoint.load_weights(supernet, done)
    supernet.eval()
