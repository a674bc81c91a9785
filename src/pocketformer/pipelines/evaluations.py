"""`evaluate` on its own: how good a network is on labelled images, in PyTorch or through an exported file."""

from collections.abc import Sequence

from pocketformer.errors import UserError
from pocketformer.pipelines.classifiers import Classifier, open_classifier
from pocketformer.pipelines.images import (
    count_learned,
    few,
    open_images,
    open_labelled_images,
    say_unreadable,
    split_otherwise,
)
from pocketformer.pipelines.networks import as_result, figures_of
from pocketformer.pipelines.trained import learned_from, run_above, run_folder
from pocketformer.progress import say
from pocketformer.training import class_order
from pocketformer.training.class_order import ClassOrder, normal, relabelled
from pocketformer.training.data import Data, Split
from pocketformer.training.evaluation import evaluate

_BATCH = 64  # of files


def evaluate_checkpoint(
    path: str,
    architecture: str | None,
    source: str,
    runtime_name: str | None = None,
    seed: int | None = None,
    bad_images: str = "refuse",
    workers: int = 2,
    file: str | None = None,
    device: str | None = None,
    order: ClassOrder | None = None,
) -> dict:
    """How good the network at `path` (as `open_classifier` takes it) is on the images of a source, as plain data:
    accuracy and what `class_figures` gives. `seed`: of the split, where the images are those of the training and
    nothing else splits them; None: the training's. `order`: of the classes of a network that names none."""
    with open_classifier(path, architecture, runtime_name, file, device) as network:
        data = _images(network, source, seed, bad_images, workers)
        known = _names_of(network, data.classes, order)
        split = _labelled_as(network.name, known, data.test, data.classes)
        images = {"size": network.size, "normalisation": network.normalisation, "workers": workers}
        if network.runtime != "torch":
            images["batch_size"] = _BATCH
        outcome = evaluate(network.forward, split, **images)
        say_unreadable(data)
        figures = figures_of(outcome, known)
        return {**as_result(outcome), "source": data.source, **figures, "runtime": network.runtime}


def _images(network: Classifier, source: str, seed: int | None, bad_images: str, workers: int) -> Data:
    """The images to judge by, as the test split: all that a folder holds, or its own test split; but where the network
    was trained on these very images, and no folders split them, those that its training set aside."""
    data = open_labelled_images(source, network.classes, network.stored_size, bad_images, workers, network.depth)
    known = learned_from(network.weights)
    facts = network.facts
    fingerprints = {facts and facts.fingerprint, known and known[0]["fingerprint"]}
    listed = known[0].get("listed", {}).get("fingerprint") if known else None
    if data.fingerprint in fingerprints or (listed and listed == data.listed.get("fingerprint")):
        if known:
            own, groups = known[1], run_above(network.weights)["settings"].get("group_by")
        else:
            own, groups = facts.seed, facts.group_by
        by = f" by --seed {seed or 0}: it must be the training's" if own is None else ""
        seed = (own or 0) if seed is None else seed
        say(f"note: the network was trained on these images: it is judged on the test split that was set aside{by}")
        how = {"uses_search": False, "group_by": groups, "depth": network.depth}
        data = open_images(source, network.stored_size, seed, bad_images, workers, **how)
        if (known and split_otherwise(known[0], data)[1]) or (own not in (None, seed) and not known):
            say("warning: this network was trained with another --seed, on some of the images it is tested on here")
        return data
    seen = count_learned(run_folder(network.weights), data)
    if seen:
        say(f"warning: the network learned from {seen:,} of these {len(data.test):,} images")
    return data


def _names_of(network: Classifier, classes: Sequence[str], order: ClassOrder | None) -> tuple[str, ...]:
    """The classes that a network knows."""
    known = class_order.names_of(network.classes, network.num_classes, classes, order, network.name)
    if known is None:
        raise UserError(f"{network.name} knows {network.num_classes} classes, but the data has {len(classes)}")
    if network.classes is None:
        how = f"in the order of --class-order {order.rule}" if order else "in sorted order"
        say(f"note: {network.name} names no classes; the data's are taken {how}")
    elif order is not None:
        say(f"note: {network.name} names its classes: --class-order is not needed, and not used")
    return known


def _labelled_as(name: str, names: Sequence[str], split: Split, classes: Sequence[str]) -> Split:
    """The split with the network's numbers for its classes, which are matched by name."""
    known = {normal(name): number for number, name in enumerate(names)}
    if unknown := [name for name in classes if normal(name) not in known]:
        raise UserError(f"{name} knows the classes {few(names)}; it cannot be judged on {few(unknown)}")
    if len(classes) < len(known):
        say(
            f"note: these are {len(classes)} of the network's {len(known)} classes ({few(classes)}); an answer of "
            "another one counts as wrong"
        )
    return relabelled(split, [known[normal(name)] for name in classes])
