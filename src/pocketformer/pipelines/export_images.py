"""The images that `export` runs a file on: the network's own, where they are still to be found, or those named."""

from dataclasses import dataclass
from pathlib import Path

from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.pipelines.images import few, identity, open_images, split_otherwise, whereabouts
from pocketformer.pipelines.trained import learned_from
from pocketformer.progress import say
from pocketformer.training import class_order
from pocketformer.training.class_order import ClassOrder, normal, relabelled
from pocketformer.training.data import Data, Split
from pocketformer.training.depths import Depth

_EMBEDDED = "embedded"


@dataclass(frozen=True)
class Images:
    """`stored`: (height, width) in px that they are kept at. `not_judged`: why the network's accuracy on them cannot be
    told; None if it can."""

    data: Data
    seed: int
    stored: tuple[int, int]
    not_judged: str | None
    classes: tuple[str, ...] = ()  # the network's

    @property
    def judged(self) -> Split | None:
        """The search split with the network's numbers for its classes, if its accuracy can be told."""
        if self.not_judged:
            return None
        rows = class_order.rows(self.classes, len(self.classes), self.data.classes, None, self.data.source)
        return relabelled(self.data.search, rows)


def images_of(
    checkpoint: str,
    config: dict,
    model: Network,
    source: str | None,
    precision: str,
    calibrated: bool,
    seed: int | None,
    workers: int,
    order: ClassOrder | None = None,
) -> Images:
    """Opens `source`, or without one what the run of the checkpoint says it was trained on; nothing is decoded yet
    where that can be helped. `calibrated`: on other images, that are named. Without `seed`, the run's.
    `order`: of the classes of weights that name none.

    Raises `UserError` where int8 would be calibrated on images that are not like the network's own, and where a lower
    precision would be judged or calibrated on other splits than those of the training.
    """
    known = learned_from(checkpoint)
    seed = seed if seed is not None else known[1] if known is not None else 0
    stored = tuple(config["data"].get("stored_size", model.resolution))
    rules = {"group_by": config["data"].get("group_by"), "depth": Depth.of_record(config["data"])}
    rules["uses_search"] = False
    own, place, why = config["data"].get("source"), config["data"].get("place"), None
    given, lower = source, precision != "float32"

    def opened(name: str) -> Data:
        found = open_images(name, stored, seed, "skip", workers, as_they_are=True, **rules)
        if lower and known is not None and _same_place(name, place or own) and not _same_images(known[0], found):
            # Perhaps the training left out what it could not read, and split the others.
            found = open_images(name, stored, seed, "skip", workers, **rules)
        return found

    if given is None:
        data, why = _own(checkpoint, own, place, known, opened, lower)
        if data is None and precision == "int8" and not calibrated:
            raise UserError(
                f"int8 is calibrated on images like those that the network was trained on, and {why}: give them as "
                "--data or --calibration"
            )
        if data is None:
            say(f"note: verified on {_EMBEDDED} images (of clothing): {why}")
            data = opened(_EMBEDDED)
    else:
        data = opened(given)
        if precision == "int8" and not calibrated and (differs := _differ(given, data, config["classes"], model)):
            raise UserError(
                f"int8 would be calibrated on other images than the network's: {differs}; where they are meant, "
                f"give --calibration {given}"
            )
    if lower and known is not None and split_otherwise(known[0], data)[0]:
        raise UserError(
            f"{checkpoint} was trained with --seed {known[1]}, which splits these images otherwise: give --seed "
            f"{known[1]}, so that none of its test images calibrates the file, and none that it learned from judges it"
        )
    classes = config["classes"]
    if classes is None and order is not None and why is None:
        classes = class_order.names_of(None, model.num_classes, data.classes, order, checkpoint)
    if classes is None:
        why = why or "the weights name no classes (--class-order says in which order they know the data's)"
    return Images(data, seed, stored, why or _differ(data.source, data, classes, model), tuple(classes or ()))


def _own(
    checkpoint: str, own: str | None, place: str | None, known: tuple[dict, int] | None, opened, lower: bool
) -> tuple[Data | None, str | None]:
    """The images that the network was trained on; or None and why they are not to be had."""
    if own is None:
        return None, "the weights do not say what they were trained on"
    try:
        own = whereabouts(checkpoint, own, place)
        data = opened(own)
    except UserError as error:
        return None, f"those cannot be read here ({error})"
    if lower and known is None:
        return None, f"no run is there that tells whether {own} still holds those"
    if lower and not _same_images(known[0], data):
        return None, f"{own} does not hold those any more"
    return data, None


def _same_place(one: str, other: str | None) -> bool:
    return other is not None and Path(one).resolve() == Path(other).resolve()


def _same_images(seen: dict, data: Data) -> bool:
    """Whether these are the images of a run, whatever the splits."""
    then, now = seen, identity(data)
    if then.get("listed") and now["listed"]:
        then, now = then["listed"], now["listed"]
    return then["fingerprint"] == now["fingerprint"]


def _differ(source: str, data: Data, classes: list[str] | None, model: Network) -> str | None:
    """In which way the data's classes are not the network's."""
    if classes is not None and sorted(map(normal, classes)) != sorted(map(normal, data.classes)):
        return f"{source} has the classes {few(data.classes)}, the network knows {few(classes)}"
    if len(data.classes) != model.num_classes:
        return f"{source} has {len(data.classes)} classes, the network {model.num_classes}"
    return None
