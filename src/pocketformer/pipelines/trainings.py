"""`train` on its own: one network on a user's images."""

from dataclasses import dataclass, field
from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import Architecture, Selection
from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model
from pocketformer.models.weights import Weights
from pocketformer.pipelines.images import open_images, record_images, refuse_seen, say_uneven, say_unreadable
from pocketformer.pipelines.networks import FinalTraining, test_result
from pocketformer.pipelines.shrinking import Searched, shrink
from pocketformer.pipelines.starts import for_classes, is_shared, open_start, reorder, searched_by
from pocketformer.pipelines.trained import learned_from, load_architecture, size_to_store
from pocketformer.progress import say
from pocketformer.runs import Inputs, Run, check_folder, held
from pocketformer.supernet import Supernet
from pocketformer.training.answers import Cache
from pocketformer.training.class_order import ClassOrder
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
    group_by: str | None = None
    compute: Compute = field(default_factory=Compute)
    workers: int = 2
    stream: bool | None = None
    keep: int = 2
    shrink: int = 0  # steps of progressive shrinking for each state of the search
    size: Grid | None = None  # of the images; None: the architecture's
    class_order: str | None = None  # of weights that name no classes

    def __post_init__(self) -> None:
        check_distillation(self.teacher, self.distillation)
        if self.teacher_cache is not None and self.teacher is None:
            raise UserError(f"--teacher-cache {self.teacher_cache}: there is no --teacher whose answers to keep")
        if self.shrink and searched_by(self.init, shrink=True) is None:
            raise UserError("--shrink follows a search: give its folder as --init")
        if self.shrink and self.size is not None:
            raise UserError("--shrink trains a supernet at its own size: without --size, or --size without --shrink")

    def to_dict(self) -> dict:
        """What the result depends on."""
        names = ("data", "init", "shrink", "teacher", "distillation", "teacher_cache", "validate", "seed", "bad_images")
        values = {name: getattr(self, name) for name in names}
        values |= {name: value for name in ("group_by", "class_order") if (value := getattr(self, name))}
        described = load_architecture(self.architecture, self.size).to_dict()
        return {"architecture": described, "recipe": self.recipe.to_dict(), "compute": self.compute.to_dict(), **values}

    def inputs(self) -> Inputs:
        cache = self.teacher_cache and Cache.parse(self.teacher_cache)  # which knows itself what its answers are to
        answers = {"teacher_cache": f"answers of {cache.epochs} epochs"} if cache else {}
        return {"data": None, **held(init=self.init, teacher=self.teacher), **answers}


def train_network(settings: TrainSettings, out: Path) -> dict:
    """Trains one network on fit + search (with `validate`: on fit, keeping what does best on search) and evaluates it
    on test; resumes in the same folder."""
    cache = None if settings.teacher_cache is None else Cache.parse(settings.teacher_cache)
    described, order = load_architecture(settings.architecture, settings.size), ClassOrder.parse(settings.class_order)
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
        settings.group_by,
    )
    say_uneven(data, recipe.balance)
    guide = load_teacher(settings.teacher, data.classes, resolution, order) if settings.teacher else None
    start = _load_init(settings, described, data, order) if settings.init else None
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


def default_recipe(architecture: str, init: str | None, shrinks: bool = False, size: Grid | None = None) -> str:
    """The recipe that suits: a name of `RECIPES`. Small networks that were trained briefly gain nothing from the low
    rates of `finetune` (docs/training.md)."""
    if max(load_architecture(architecture, size).design.resolution) <= 128:
        return "small-images"
    if init is None:
        return "imagenet"
    return "small-images" if is_shared(init, shrinks) else "finetune"


def _load_init(
    settings: TrainSettings, described: Architecture, data: Data, order: ClassOrder | None
) -> Searched | tuple[Supernet, dict, Selection] | Weights:
    """What `--init` names; `UserError` if it does not fit, or has seen what is tested on."""
    init, num_classes = settings.init, len(data.classes)
    found = open_start(init, described, bool(settings.shrink))
    if isinstance(found, Weights):
        if known := learned_from(init):
            refuse_seen(init, *known, data, settings.validate)
        shape = create_model(described, num_classes)
        _, _, found = checkpoints.recognise(shape, found, init)
        found = for_classes(found, data.classes, order, f"--init {init}")
        checkpoints.fit(shape, found, init)  # told before a run begins
        return found
    supernet, config = (found.supernet, found.config) if isinstance(found, Searched) else found[:2]
    if config["num_classes"] != num_classes:
        raise UserError(f"--init {init} has {config['num_classes']} classes, the data {num_classes}")
    reorder(supernet, config["classes"], data.classes, f"--init {init}")
    if "identity" in config:
        refuse_seen(init, config["identity"], config["seed"], data, settings.validate)
    return found


def _initialised(
    final: FinalTraining,
    described: Architecture,
    source: Searched | tuple[Supernet, dict, Selection] | Weights | None,
    init: str | None,
) -> Network:
    if source is None:
        return final.fresh(described)
    if isinstance(source, Searched | tuple):
        shared = (source.supernet, source.found) if isinstance(source, Searched) else (source[0], source[2])
        return final.inherit(*shared, described.design.resolution)
    model = final.fresh(described)
    for note in checkpoints.fit(model, source, init).notes:
        say(f"note: {note}")
    return model
