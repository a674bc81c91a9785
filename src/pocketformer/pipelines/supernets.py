"""The supernet stage: trains a space's supernet on fit, and loads a trained one."""

import os
from pathlib import Path

import torch

from pocketformer import files, ranks
from pocketformer.architecture import SearchSpace
from pocketformer.errors import UserError
from pocketformer.pipelines.images import open_images, say_unreadable
from pocketformer.pipelines.settings import stored_size
from pocketformer.progress import stage
from pocketformer.runs import Ledger, Run, check_folder
from pocketformer.supernet import Supernet
from pocketformer.supernet.sampling import Sandwich
from pocketformer.training import checkpoint
from pocketformer.training.batches import Share, train_batches
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.engine import Job, planned_steps, train
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import SandwichTask


def train_supernet(
    folder: Path,
    space: SearchSpace,
    data: Data,
    recipe: Recipe,
    seed: int,
    ledger: Ledger,
    *,
    in_place: bool = True,
    about: dict | None = None,
    compute: Compute | None = None,
    workers: int = 0,
) -> Supernet:
    """Trains by the sandwich rule, or returns the supernet if that is already done. `about` is kept in its
    `config.json` (how the data was opened), so that the folder can be searched alone."""
    if ranks.from_first((folder / "model.safetensors").exists()):
        return load_supernet(folder)[0]
    torch.manual_seed(seed)
    supernet = Supernet(
        space,
        len(data.classes),
        distilled=False,
        drop_path=recipe.drop_path_of(space.largest),
        layer_scale=recipe.layer_scale,
    )
    batches = train_batches(
        data.fit,
        recipe.batch_size,
        space.resolution,
        recipe.augmentation,
        seed,
        share=Share(ranks.rank(), ranks.count()),
        workers=workers,
    )
    compute = compute or Compute()
    task = SandwichTask(supernet, Sandwich(space, seed=seed), recipe.label_smoothing, in_place)
    mix = Mixing(recipe, len(data.classes), seed) if recipe.mixes else None
    with stage("train the supernet", planned_steps(batches, recipe)) as progress:
        state = train(task, batches, recipe, Job(folder, "supernet", ledger, progress), seed, compute, mix)
    if ranks.first():
        config = {"space": space.to_dict(), "num_classes": len(data.classes), "classes": list(data.classes)}
        files.write_json(folder / "config.json", {**config, **(about or {})})
        checkpoint.save_tensors(folder / "model.safetensors", state.averaged)
    ranks.wait()
    return load_supernet(folder)[0]


def load_supernet(folder: str | os.PathLike) -> tuple[Supernet, dict]:
    """A trained supernet in eval mode, and its `config.json`. Takes the folder of `supernet` or of `design`."""
    folder = Path(folder)
    if (folder / "supernet" / "model.safetensors").exists():
        folder = folder / "supernet"
    if not (folder / "model.safetensors").exists():
        raise UserError(f"{folder} holds no trained supernet (no model.safetensors)")
    config = files.read_json(folder / "config.json", "supernet configuration")
    if "space" not in config:
        raise UserError(f"{folder} holds a single network, not a supernet")
    space = SearchSpace.from_dict(config["space"], str(folder / "config.json"))
    supernet = Supernet(space, config["num_classes"], distilled=False).to(memory_format=torch.channels_last)
    checkpoint.load_weights(supernet, folder / "model.safetensors")
    return supernet.eval(), config


def supernet_run(
    space: SearchSpace,
    source: str,
    recipe: Recipe,
    out: Path,
    plain: bool,
    seed: int,
    bad_images: str,
    workers: int,
    compute: Compute | None = None,
) -> dict:
    """`supernet` on its own: trains in a run's folder, or resumes there. `plain`: no in-place distillation."""
    about = {"data": source, "seed": seed, "bad_images": bad_images}
    settings = {**about, "space": space.to_dict(), "recipe": recipe.to_dict(), "plain": plain}
    compute = compute or Compute()
    settings["compute"] = compute.to_dict()
    check_folder(out, "supernet", settings)
    images = open_images(source, stored_size(space), seed, bad_images, workers, as_they_are=bool(recipe.randaugment))
    with Run(out, "supernet", settings) as run:
        run.record(data_fingerprint=images.fingerprint, split_fingerprint=images.split_fingerprint)
        net = train_supernet(
            run.path,
            space,
            images,
            recipe,
            seed,
            run.ledger,
            in_place=not plain,
            about=about,
            compute=compute,
            workers=workers,
        )
    say_unreadable(images)
    numbers = sum(p.numel() for p in net.parameters())
    return {"supernet": str(out), "space": space.name, "shared_parameters": numbers}
