"""`train` on its own: one network on a user's images."""

from dataclasses import dataclass, field
from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import Architecture
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.images import open_images, record_images, refuse_seen, say_unreadable
from pocketformer.pipelines.networks import FinalTraining, test_result
from pocketformer.pipelines.shrinking import Searched, load_searched, shrink
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone, learned_from, load_architecture, size_to_store
from pocketformer.progress import say
from pocketformer.runs import Inputs, Run, check_folder, held
from pocketformer.supernet import MetaPathSupernet, Supernet
from pocketformer.training import checkpoint
from pocketformer.training.answers import Cache
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.recipe import Recipe
from pocketformer.training.teachers import check_distillation, load_teacher


@dataclass(frozen=True)
class TrainSettings:
    """What `train` is asked for. `workers`, `stream` and `keep` may change when a run is resumed."""

    architecture: str
    data: str
    recipe: Recipe
    init: str | None = None
    teacher: str | None = None
    distillation: str = "hard"
    teacher_cache: str | None = None
    validate: bool = False
    seed: int = 0
    bad_images: str = "refuse"
    compute: Compute = field(default_factory=Compute)
    workers: int = 2
    stream: bool | None = None
    keep: int = 2
    shrink: int = 0  # steps of progressive shrinking for each state of the search

    def __post_init__(self) -> None:
        check_distillation(self.teacher, self.distillation)
        if self.teacher_cache is not None and self.teacher is None:
            raise UserError(f"--teacher-cache {self.teacher_cache}: there is no --teacher whose answers to keep")
        if self.shrink and not is_search(self.init):
            raise UserError("--shrink follows a search: give its folder as --init")

    def to_dict(self) -> dict:
        """What the result depends on."""
        names = ("data", "init", "shrink", "teacher", "distillation", "teacher_cache", "validate", "seed", "bad_images")
        values = {name: getattr(self, name) for name in names}
        described = load_architecture(self.architecture).to_dict()
        return {"architecture": described, "recipe": self.recipe.to_dict(), "compute": self.compute.to_dict(), **values}

    def inputs(self) -> Inputs:
        cache = self.teacher_cache and Cache.parse(self.teacher_cache)  # which knows itself what its answers are to
        answers = {"teacher_cache": f"answers of {cache.epochs} epochs"} if cache else {}
        return {"data": None, **held(init=self.init, teacher=self.teacher), **answers}


def train_network(settings: TrainSettings, out: Path) -> dict:
    """Trains one network on fit + search (with `validate`: on fit, keeping what does best on search) and evaluates it
    on test; resumes in the same folder."""
    cache = None if settings.teacher_cache is None else Cache.parse(settings.teacher_cache)
    described = load_architecture(settings.architecture)
    inputs = settings.inputs()
    check_folder(out, "train", settings.to_dict(), inputs)
    resolution, recipe = described.design.resolution, settings.recipe
    data = open_images(
        settings.data,
        size_to_store(resolution),
        settings.seed,
        settings.bad_images,
        settings.workers,
        settings.stream,
        bool(recipe.randaugment),
        settings.validate,
    )
    guide = load_teacher(settings.teacher, data.classes, resolution) if settings.teacher else None
    start = _load_init(settings.init, described, data, settings.validate) if settings.init else None
    with Run(out, "train", settings.to_dict(), inputs) as run:
        record_images(run, data)
        final = FinalTraining(
            data,
            recipe,
            settings.seed,
            run.ledger,
            guide,
            settings.compute,
            settings.workers,
            settings.validate,
            settings.distillation,
            settings.keep,
            cache,
        )
        if settings.shrink:
            shrink(start, final, run.path, settings.shrink)
        model = _initialised(final, described, start, settings.init)
        model = final.run(run.path, "network", model)
        _, test = test_result(model.to(settings.compute.where), data, settings.workers)
        say_unreadable(data)
        parameters = sum(p.numel() for p in model.parameters())
        result = {"parameters": parameters, "test": test, "folder": str(run.path)}
        if ranks.first():
            files.write_json(run.path / "results.json", {"command": "train", "seed": settings.seed, **result})
    return result


def default_recipe(architecture: str, init: str | None) -> str:
    """The recipe that suits: a name of `RECIPES`. Small networks that were trained briefly gain nothing from the low
    rates of `finetune` (docs/training.md)."""
    if max(load_architecture(architecture).design.resolution) <= 128:
        return "small-images"
    if init is None:
        return "imagenet"
    supernets = map(weights.is_supernet, (Path(init), Path(init) / "supernet"))
    return "small-images" if is_search(init) or any(supernets) else "finetune"


def is_search(init: str | None) -> bool:
    """Whether it is the folder of a search: of `search`, or of `design`."""
    return init is not None and (Path(init) / "search.jsonl").is_file()


def _load_init(init: str, described: Architecture, data: Data, validate: bool) -> Searched | Supernet | Weights:
    """The search, supernet or weights that `--init` names; `UserError` if they do not fit, or have seen what is tested
    on."""
    folder, num_classes = Path(init), len(data.classes)
    if not folder.exists():
        raise UserError(f"--init {init}: no such file or folder")
    if is_search(init):
        found = load_searched(folder, described)
        if found.num_classes != num_classes:
            raise UserError(f"--init {init} has {found.num_classes} classes, the data {num_classes}")
        _check_seen(init, found.config, data, validate)
        return found
    if known := learned_from(folder):
        refuse_seen(init, *known, data, validate)
    if is_weights_alone(folder):
        return _checked(weights.read(folder), described, num_classes, init)
    config_file = (folder / "supernet" if (folder / "supernet").is_dir() else folder) / "config.json"
    if config_file.is_file() and "space" in files.read_json(config_file):
        supernet, config = load_supernet(folder)
        if config["num_classes"] != num_classes:
            raise UserError(f"--init {init} has {config['num_classes']} classes, the data {num_classes}")
        _check_seen(init, config, data, validate)
        supernet.select(described)
        return supernet
    source, _ = checkpoint.load_model(folder)
    if source.architecture != described:
        raise UserError(f"--init {init} is of another architecture")
    normalisation = source.pretrained_cfg["mean"], source.pretrained_cfg["std"]
    return _checked(Weights(source.state_dict(), source.resolution, normalisation), described, num_classes, init)


def _check_seen(init: str, config: dict, data: Data, validate: bool) -> None:
    if "identity" in config:
        refuse_seen(init, config["identity"], config["seed"], data, validate)


def _checked(found: Weights, described: Architecture, num_classes: int, init: str) -> Weights:
    checkpoints.fit(create_model(described, num_classes), found, init)  # told before a run begins
    return found


def _initialised(
    final: FinalTraining, described: Architecture, source: Searched | Supernet | Weights | None, init: str | None
) -> Network:
    if source is None:
        return final.fresh(described)
    if isinstance(source, Searched):
        return final.inherit(source.supernet, source.found)
    if isinstance(source, Supernet | MetaPathSupernet):
        return final.inherit(source, source.select(described))
    model = final.fresh(described)
    for note in checkpoints.fit(model, source, init).notes:
        say(f"note: {note}")
    return model
