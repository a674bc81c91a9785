"""`train` on its own: one network on a user's images."""

from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.networks import FinalTraining, test_result
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone, load_architecture, size_to_store
from pocketformer.progress import say
from pocketformer.runs import Run, check_folder
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import load_teacher


def train_network(
    architecture: str,
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    init: str | None = None,
    teacher: str | None = None,
    seed: int = 0,
    bad_images: str = "refuse",
    workers: int = 2,
) -> dict:
    """Trains one network on fit + search and evaluates it on test; resumes in the same folder."""
    described = load_architecture(architecture)
    settings = {
        "architecture": described.to_dict(),
        "data": source,
        "recipe": recipe.to_dict(),
        "init": init,
        "teacher": teacher,
        "seed": seed,
        "bad_images": bad_images,
    }
    check_folder(out, "train", settings)
    data = open_images(source, size_to_store(described.design.resolution), seed, bad_images, workers)
    guide = load_teacher(teacher, len(data.classes)) if teacher else None
    start = _load_init(init, described, len(data.classes)) if init else None
    with Run(out, "train", settings) as run:
        run.record(data_fingerprint=data.fingerprint, split_fingerprint=data.split_fingerprint)
        final = FinalTraining(data, recipe, seed, run.ledger, guide)
        model = _initialised(final, described, start, init)
        model = final.run(run.path, "network", model)
        _, test = test_result(model, data)
        parameters = sum(p.numel() for p in model.parameters())
        result = {"parameters": parameters, "test": test, "folder": str(run.path)}
        files.write_json(run.path / "results.json", {"command": "train", "seed": seed, **result})
    return result


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
