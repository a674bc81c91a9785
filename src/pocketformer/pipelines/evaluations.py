"""`evaluate` on its own: accuracy on the test split, in PyTorch or through an exported file."""

from pathlib import Path

import torch

from pocketformer.deploy import SUFFIXES, format_by_name, runtime_of
from pocketformer.errors import UserError
from pocketformer.pipelines.images import few, open_images, say_unreadable, split_otherwise
from pocketformer.pipelines.networks import as_result, test_result
from pocketformer.pipelines.trained import is_weights_alone, learned_from, load_trained
from pocketformer.progress import say
from pocketformer.runtimes import runtime
from pocketformer.runtimes.sessions import Sessions
from pocketformer.training.batches import normalisation_of
from pocketformer.training.data import Data
from pocketformer.training.depths import Depth
from pocketformer.training.evaluation import evaluate


def evaluate_checkpoint(
    path: str,
    architecture: str | None,
    source: str,
    runtime_name: str | None,
    seed: int,
    bad_images: str,
    workers: int,
) -> dict:
    """Accuracy on the test split of a trained folder, in PyTorch, or of an exported file on its runtime."""
    target = Path(path)
    format = format_by_name(target)
    if format is not None and runtime_name is None:
        runtime_name = runtime_of(format)
        if runtime_name is None:
            raise UserError(f"{path}: no runtime here can run {format} files")
    folder = target.parent if format is not None or target.suffix == ".safetensors" else target
    if folder.name == "exported":
        folder = folder.parent
    if format is not None and not (folder / "config.json").is_file():
        raise UserError(f"{path} is in no trained folder: its classes and image size (config.json) are not known")
    alone = is_weights_alone(target)
    if alone and runtime_name is not None:
        raise UserError(f"{path} holds weights alone: `export` it, and give the folder of a training here")
    model, config = load_trained(target if alone else folder, architecture)
    file = None if runtime_name is None else _exported(target, folder, format, runtime_name)
    size = tuple(config["data"].get("stored_size", model.resolution))
    known = {"group_by": config["data"].get("group_by"), "depth": Depth.of_record(config["data"])}
    data = open_images(source, size, seed, bad_images, workers, uses_search=False, **known)
    if alone:
        if len(data.classes) != model.num_classes:
            raise UserError(f"{path} knows {model.num_classes} classes, but the data has {len(data.classes)}")
        say(f"note: {path} names no classes; the data's are taken in sorted order")
    elif list(data.classes) != config["classes"]:
        raise UserError(f"{path} knows the classes {few(config['classes'])}, but the data has {few(data.classes)}")
    _warn_of_trained_images(target if alone else folder, data)
    if file is None:
        result = test_result(model, data, workers)[1]
        say_unreadable(data)
        return {**result, "runtime": "torch"}
    with Sessions(runtime_name) as sessions:
        shape = sessions.load(str(file), file)
        if shape != (1, 3, *model.resolution):
            raise UserError(f"{file} takes inputs of shape {shape}; this network's are {(1, 3, *model.resolution)}")
        forward = lambda x: torch.from_numpy(sessions.run(str(file), x.numpy()))  # noqa: E731
        outcome = evaluate(forward, data.test, model.resolution, 64, normalisation_of(model))
    return {**as_result(outcome), "runtime": runtime_name}


def _exported(target: Path, folder: Path, format: str | None, runtime_name: str) -> Path:
    """The file to run: the one named, or the folder's own in the runtime's format."""
    wanted = runtime(runtime_name).FORMAT
    if format not in (None, wanted):
        raise UserError(f"{target} is a file of format {format}, but {runtime_name} runs {wanted}")
    file = target if format is not None else folder / "exported" / f"model{SUFFIXES[wanted]}"
    if not file.exists():
        raise UserError(f"no exported file at {file}; run `export` first, or give its path as --checkpoint")
    return file


def _warn_of_trained_images(weights: Path, data: Data) -> None:
    """The same images split otherwise: some that are tested on were trained on."""
    known = learned_from(weights)
    if known is not None and split_otherwise(known[0], data)[1]:
        say("warning: this network was trained with another --seed, on some of the images it is tested on here")
