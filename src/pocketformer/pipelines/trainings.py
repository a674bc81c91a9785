"""`train` and `evaluate` on their own: one network on a user's images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.deploy.onnx import run_onnx
from pocketformer.errors import UserError
from pocketformer.models import Network, checkpoints, create_model, weights
from pocketformer.models.weights import Weights
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.networks import FinalTraining, as_test_result, test_result
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.pipelines.trained import is_weights_alone, load_architecture, load_trained, size_to_store
from pocketformer.progress import say
from pocketformer.runs import Run, check_folder, read_config
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.batches import normalisation_of
from pocketformer.training.data import Data
from pocketformer.training.evaluation import evaluate
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


def evaluate_checkpoint(
    path: str,
    architecture: str | None,
    source: str,
    runtime: str | None,
    seed: int,
    bad_images: str,
    workers: int,
) -> dict:
    """Accuracy on the test split of a trained folder, in PyTorch, or of an exported file on its runtime."""
    target = Path(path)
    through_file = runtime is not None or target.suffix == ".onnx"
    folder = target.parent if target.suffix in (".onnx", ".safetensors") else target
    if folder.name == "exported":
        folder = folder.parent
    file = target if target.suffix == ".onnx" else folder / "exported" / "model.onnx"
    if target.suffix == ".onnx" and not (folder / "config.json").is_file():
        raise UserError(f"{path} is in no trained folder: its classes and image size (config.json) are not known")
    alone = is_weights_alone(target)
    if alone and through_file:
        raise UserError(f"{path} holds weights alone: `export` it, and give the folder of a training here")
    model, config = load_trained(target if alone else folder, architecture)
    if through_file and not file.is_file():
        raise UserError(f"no exported file at {file}; run `export` first, or give its path as --checkpoint")
    run = run_onnx(file) if through_file else None
    size = tuple(config["data"].get("stored_size", model.resolution))
    data = open_images(source, size, seed, bad_images, workers)
    if alone:
        if len(data.classes) != model.num_classes:
            raise UserError(f"{path} knows {model.num_classes} classes, but the data has {len(data.classes)}")
        say(f"note: {path} names no classes; the data's are taken in sorted order")
    elif list(data.classes) != config["classes"]:
        raise UserError(
            f"{path} knows the classes {_named(config['classes'])}, but the data has {_named(data.classes)}"
        )
    _warn_of_trained_images(folder, data)
    if run is None:
        return {**test_result(model, data)[1], "runtime": "torch"}
    forward = lambda x: torch.from_numpy(run(x.numpy()))  # noqa: E731
    outcome = evaluate(forward, data.test, model.resolution, 1, normalisation_of(model))
    return {**as_test_result(outcome), "runtime": "onnxruntime"}


def _named(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f", … ({len(classes)} in all)" if len(classes) > 4 else "")


def _warn_of_trained_images(folder: Path, data: Data) -> None:
    """The same images split otherwise: some that are tested on were trained on."""
    if not (folder / "config.yaml").is_file():
        return
    facts = read_config(folder)["facts"]
    same = facts.get("data_fingerprint") == data.fingerprint
    if same and facts.get("split_fingerprint") != data.split_fingerprint:
        say("warning: this network was trained with another --seed, on some of the images it is tested on here")
