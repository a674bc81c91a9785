"""`train` on its own: one network on a user's images."""

from pathlib import Path

from pocketformer import files, ranks
from pocketformer.architecture import Architecture
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.images import open_images, say_unreadable
from pocketformer.pipelines.networks import FinalTraining, test_result
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone, load_architecture, size_to_store
from pocketformer.progress import say
from pocketformer.runs import Run, check_folder
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.answers import Cache
from pocketformer.training.compute import Compute
from pocketformer.training.recipe import Recipe
from pocketformer.training.teachers import load_teacher


def train_network(
    architecture: str,
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    init: str | None = None,
    teacher: str | None = None,
    distillation: str = "hard",
    teacher_cache: str | None = None,
    validate: bool = False,
    seed: int = 0,
    bad_images: str = "refuse",
    workers: int = 2,
    stream: bool | None = None,
    compute: Compute | None = None,
    keep: int = 2,
) -> dict:
    """Trains one network on fit + search (with `validate`: on fit, keeping what does best on search) and evaluates it
    on test; resumes in the same folder."""
    compute = compute or Compute()
    if teacher_cache is not None and teacher is None:
        raise UserError(f"--teacher-cache {teacher_cache}: there is no --teacher whose answers to keep")
    cache = None if teacher_cache is None else Cache.parse(teacher_cache)
    described = load_architecture(architecture)
    settings = {
        "architecture": described.to_dict(),
        "data": source,
        "recipe": recipe.to_dict(),
        "init": init,
        "teacher": teacher,
        "seed": seed,
        "bad_images": bad_images,
        "distillation": distillation,
        "teacher_cache": teacher_cache,
        "validate": validate,
        "compute": compute.to_dict(),
    }
    check_folder(out, "train", settings)
    size = size_to_store(described.design.resolution)
    data = open_images(source, size, seed, bad_images, workers, stream, bool(recipe.randaugment))
    guide = load_teacher(teacher, data.classes, described.design.resolution) if teacher else None
    start = _load_init(init, described, len(data.classes)) if init else None
    with Run(out, "train", settings) as run:
        run.record(data_fingerprint=data.fingerprint, split_fingerprint=data.split_fingerprint)
        final = FinalTraining(
            data, recipe, seed, run.ledger, guide, compute, workers, validate, distillation, keep, cache
        )
        model = _initialised(final, described, start, init)
        model = final.run(run.path, "network", model)
        _, test = test_result(model.to(compute.where), data, workers)
        say_unreadable(data)
        parameters = sum(p.numel() for p in model.parameters())
        result = {"parameters": parameters, "test": test, "folder": str(run.path)}
        if ranks.first():
            files.write_json(run.path / "results.json", {"command": "train", "seed": seed, **result})
    return result


def default_recipe(architecture: str, init: str | None) -> str:
    """The recipe that suits: a name of `RECIPES`."""
    folders = [] if init is None else [Path(init), Path(init) / "supernet"]
    if init is not None and not any(map(weights.is_supernet, folders)):
        return "finetune"
    small = max(load_architecture(architecture).design.resolution) <= 128
    return "small-images" if small or init is not None else "imagenet"


def _load_init(init: str, described: Architecture, num_classes: int) -> Supernet | Weights:
    """The supernet or weights that `--init` names; `UserError` if they do not fit."""
    folder = Path(init)
    if not folder.exists():
        raise UserError(f"--init {init}: no such file or folder")
    if is_weights_alone(folder):
        return _checked(weights.read(folder), described, num_classes, init)
    config_file = (folder / "supernet" if (folder / "supernet").is_dir() else folder) / "config.json"
    if config_file.is_file() and "space" in files.read_json(config_file):
        supernet, config = load_supernet(folder)
        if config["num_classes"] != num_classes:
            raise UserError(f"--init {init} has {config['num_classes']} classes, the data {num_classes}")
        supernet.select(described)
        return supernet
    source, _ = checkpoint.load_model(folder)
    if source.architecture != described:
        raise UserError(f"--init {init} is of another architecture")
    normalisation = source.pretrained_cfg["mean"], source.pretrained_cfg["std"]
    return _checked(Weights(source.state_dict(), source.resolution, normalisation), described, num_classes, init)


def _checked(found: Weights, described: Architecture, num_classes: int, init: str) -> Weights:
    checkpoints.fit(create_model(described, num_classes), found, init)  # told before a run begins
    return found


def _initialised(
    final: FinalTraining, described: Architecture, source: Supernet | Weights | None, init: str | None
) -> Network:
    if source is None:
        return final.fresh(described)
    if isinstance(source, Supernet):
        return final.inherit(source, source.select(described))
    model = final.fresh(described)
    for note in checkpoints.fit(model, source, init).notes:
        say(f"note: {note}")
    return model
