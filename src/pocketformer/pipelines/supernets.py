"""The supernet stage: trains a space's supernet on fit, and loads a trained one."""

import os
from pathlib import Path

import torch

from pocketformer import files, ranks
from pocketformer.architecture import Architecture, SearchSpace, Selection
from pocketformer.architecture.results import space_costs
from pocketformer.errors import UserError
from pocketformer.pipelines.images import (
    few,
    identity,
    open_images,
    record_images,
    say_uneven,
    say_unreadable,
    whereabouts,
)
from pocketformer.pipelines.networks import as_result, recalibrated_score
from pocketformer.pipelines.sampling import Choice, Sampling
from pocketformer.pipelines.settings import stored_size
from pocketformer.progress import stage
from pocketformer.runs import Ledger, Run, check_folder, held
from pocketformer.supernet import MetaPathSupernet, Supernet, new_supernet
from pocketformer.supernet.channels import sort_channels
from pocketformer.supernet.gumbel import Exploration
from pocketformer.supernet.sampling import LatencyAware, Rule, Sandwich
from pocketformer.training import checkpoint
from pocketformer.training.balance import loss_weights
from pocketformer.training.batches import Share, train_batches
from pocketformer.training.class_order import ClassOrder
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.engine import Job, planned_steps, train
from pocketformer.training.evaluation import evaluate
from pocketformer.training.mixing import Mixing
from pocketformer.training.recipe import Recipe
from pocketformer.training.targets import InPlace, Labels, Targets, Taught
from pocketformer.training.tasks import NEEDS_LARGEST, MetaPathTask, SandwichTask
from pocketformer.training.teachers import check_distillation, load_teacher


def train_supernet(
    folder: Path,
    space: SearchSpace,
    data: Data,
    recipe: Recipe,
    seed: int,
    ledger: Ledger,
    *,
    rule: Rule | None = None,
    targets: Targets | None = None,
    choice: Choice | None = None,
    about: dict | None = None,
    compute: Compute | None = None,
    workers: int = 0,
) -> Supernet | MetaPathSupernet:
    """Trains the supernet, V2's by the sandwich rule and with in-place distillation unless others are given, V1's by
    Gumbel softmax as `choice` says; or returns it if that is already done. `about` is kept in its `config.json` (how
    the data was opened), so that the folder can be searched alone."""
    if ranks.from_first((folder / "model.safetensors").exists()):
        return load_supernet(folder)[0]
    torch.manual_seed(seed)
    options = {"drop_path": recipe.drop_path_of(space.largest), "layer_scale": recipe.layer_scale}
    choice = choice or Choice()
    if space.metapath:
        options["alpha_rate"] = choice.alpha_rate
    supernet = new_supernet(space, len(data.classes), **options)
    batches = train_batches(
        data.fit,
        recipe.batch_size,
        space.resolution,
        recipe.augmentation,
        seed,
        share=Share(ranks.rank(), ranks.count()),
        workers=workers,
        balanced=recipe.balance == "sampling",
    )
    compute = compute or Compute()
    weights = loss_weights(recipe.balance, data.fit, len(data.classes))
    labels, steps = Labels(recipe.label_smoothing, weights), planned_steps(batches, recipe)
    if space.metapath:
        task = MetaPathTask(supernet, Exploration(steps, seed, choice.noise), targets or labels)
    else:
        task = SandwichTask(supernet, rule or Sandwich(space, seed=seed), targets or InPlace(labels))
    mix = Mixing(recipe, len(data.classes), seed) if recipe.mixes else None
    what = "largest network alone" if (about or {}).get("trained") == "alone" else "supernet"
    with stage(f"train the {what}", steps) as progress:
        state = train(task, batches, recipe, Job(folder, "supernet", ledger, progress), seed, compute, mix)
    if ranks.first():
        if space.metapath:
            sort_channels(state.averaged)
        config = {"space": space.to_dict(), "num_classes": len(data.classes), "classes": list(data.classes)}
        files.write_json(folder / "config.json", {**config, "identity": identity(data), **(about or {})})
        checkpoint.save_tensors(folder / "model.safetensors", state.averaged)
    ranks.wait()
    return load_supernet(folder)[0]


def load_supernet(folder: str | os.PathLike) -> tuple[Supernet | MetaPathSupernet, dict]:
    """A trained supernet in eval mode, and its `config.json`. Takes the folder of `supernet` or of `design`."""
    weights = weights_of(folder)
    folder = weights.parent
    config = files.read_json(folder / "config.json", "supernet configuration")
    if "space" not in config:
        raise UserError(f"{folder} holds a single network, not a supernet")
    space = SearchSpace.from_dict(config["space"], str(folder / "config.json"))
    supernet = new_supernet(space, config["num_classes"]).to(memory_format=torch.channels_last)
    checkpoint.load_weights(supernet, weights)
    return supernet.eval(), config


def weights_of(folder: str | os.PathLike) -> Path:
    """The file of a trained supernet's weights, in the folder of `supernet` or of `design`."""
    folder = Path(folder)
    if folder.name == "model.safetensors" and folder.is_file():
        return folder
    for file in (folder / "supernet" / "model.safetensors", folder / "model.safetensors"):
        if file.exists():
            return file
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of a supernet")
    raise UserError(f"{folder} holds no trained supernet (no model.safetensors)")


def opened(source: str, seed: int, bad_images: str, group_by: str | None) -> dict:
    """How images were opened, for the `about` of a supernet: `images_of` opens them again so."""
    how = {"data": source, "place": os.path.abspath(source), "seed": seed, "bad_images": bad_images}
    return {**how, "group_by": group_by} if group_by else how


def images_of(
    folder: str | os.PathLike, config: dict, size: tuple[int, int], workers: int, source: str | None = None
) -> Data:
    """The images that the supernet of `folder` learned from, split as they were then: what it is to be scored on must
    not be among what it has seen. `source`: where they are now. Raises `UserError` if they have changed."""
    source = source or whereabouts(folder, config["data"], config.get("place"))
    how, groups = (source, size, config["seed"], config["bad_images"], workers), {"group_by": config.get("group_by")}
    data = open_images(*how, **groups)
    if (known := config["classes"]) != list(data.classes):
        raise UserError(f"{folder} knows the classes {few(known)}, but {source} has {few(data.classes)}")
    then, now = config.get("identity"), identity(data)
    if then is not None and then["streamed"] != now["streamed"]:  # the one knows files, the other pixels
        if then["images"] == now["images"]:
            return data
        # Unreadable files are left out before a split is drawn, but out of a stream only once they are met.
        data = open_images(*how, then["streamed"], **groups)
        now = identity(data)
    # Files may have other names since, if they hold the same.
    if then is not None and any(then[name] != now[name] for name in then if name != "listed"):
        raise UserError(
            f"the images of {source} have changed since {folder} was trained on them, so that some that it is "
            "scored on may be among those it has seen: train a supernet on what is there now"
        )
    return data


def recalibration(supernet: Supernet, subnet: Architecture | Selection, data: Data, seed: int) -> dict:
    """What re-calibrated norms do to a subnet (contract 6.5): its accuracy on the search split with the running
    statistics of its switches, which mix all subnets that trained them, and with those of images of fit."""
    model = supernet.extract(subnet).to(memory_format=torch.channels_last).eval()
    before = evaluate(model, data.search, model.resolution)
    after = recalibrated_score(supernet, supernet.select(subnet), data, seed)
    return {"before": as_result(before, "search"), "recalibrated": as_result(after, "search")}


def supernet_run(
    space: SearchSpace,
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    sampling: Sampling | None = None,
    plain: bool = False,
    teacher: str | None = None,
    class_order: str | None = None,
    distillation: str = "hard",
    choice: Choice | None = None,
    seed: int = 0,
    bad_images: str = "refuse",
    group_by: str | None = None,
    workers: int = 2,
    compute: Compute | None = None,
) -> dict:
    """`supernet` on its own: trains in a run's folder, or resumes there. `plain`: no in-place distillation, which V1's
    has none of; `choice` is of V1's alone."""
    sampling, choice, compute = sampling or Sampling(), choice or Choice(), compute or Compute()
    if space.metapath and sampling != Sampling():
        raise UserError(f"space {space.name} is of EfficientFormers (V1), whose supernet draws no subnets (--sampling)")
    if not space.metapath and choice != Choice():
        raise UserError(f"--noise and --alpha-rate are for spaces of EfficientFormers (V1), which {space.name} is not")
    if space.metapath and plain:
        raise UserError(f"--plain: the supernet of {space.name} (V1) has no in-place distillation to leave out")
    check_distillation(teacher, distillation)
    order = ClassOrder.parse(class_order)
    if sampling.name == "uniform" and not plain:
        raise UserError(NEEDS_LARGEST)
    settings = {
        "data": source,
        "seed": seed,
        "bad_images": bad_images,
        "space": space.to_dict(),
        "recipe": recipe.to_dict(),
        "sampling": sampling.to_dict(),
        "plain": plain,
        "teacher": teacher,
        **({"class_order": class_order} if class_order else {}),
        "distillation": distillation,
        "compute": compute.to_dict(),
        **({"choice": choice.to_dict()} if space.metapath else {}),
        **({"group_by": group_by} if group_by else {}),
    }
    inputs = {"data": None, **held(teacher=teacher, **{"sampling latency": sampling.latency})}
    check_folder(out, "supernet", settings, inputs)
    as_they_are = bool(recipe.randaugment)
    images = open_images(
        source, stored_size(space), seed, bad_images, workers, as_they_are=as_they_are, group_by=group_by
    )
    say_uneven(images, recipe.balance)
    rule = sampling.rule(space, len(images.classes), seed)
    weights = loss_weights(recipe.balance, images.fit, len(images.classes))
    targets: Targets = Labels(recipe.label_smoothing, weights)
    if teacher is not None:
        guide = load_teacher(teacher, images.classes, space.resolution, order).to(compute.where)
        targets = Taught(targets, guide, distillation)
    targets = targets if plain or space.metapath else InPlace(targets)
    with Run(out, "supernet", settings, inputs) as run:
        record_images(run, images)
        if isinstance(rule, LatencyAware):
            run.record(latency_range=list(rule.range))  # a table that has changed draws other subnets
        net = train_supernet(
            run.path,
            space,
            images,
            recipe,
            seed,
            run.ledger,
            rule=rule,
            targets=targets,
            choice=choice,
            about=opened(source, seed, bad_images, group_by),
            compute=compute,
            workers=workers,
        )
        scores = _scores(run.path, net.to(compute.where), images, seed)
    say_unreadable(images)
    numbers = sum(p.numel() for p in net.parameters())
    costs = space_costs(space, len(images.classes), distilled=False)
    if "paper" in costs:
        costs["as_published"] = space_costs(space)["largest"]
    found = {"supernet": str(out), "space": space.name, "shared_parameters": numbers, **costs, "accuracy": scores}
    return {**found, "entropy": net.entropy().item()} if space.metapath else found


def _scores(folder: Path, supernet: Supernet, data: Data, seed: int) -> dict:
    """Accuracies of the largest and the smallest subnet, which every sandwich trained, and of a random one, whose
    switches others trained; found again if that is done."""
    file = folder / "recalibration.json"
    if ranks.from_first(file.exists()):
        return files.read_json(file, "accuracies")
    space = supernet.space
    with stage("score the largest, the smallest and a random subnet"):
        members = {"largest": space.whole, "smallest": space.select(space.smallest)}
        members["random"] = space.sample_selection(seed)
        scores = {name: recalibration(supernet, member, data, seed) for name, member in members.items()}
    if ranks.first():
        files.write_json(file, scores)
    ranks.wait()
    return scores
