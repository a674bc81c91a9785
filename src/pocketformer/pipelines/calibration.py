"""Images that calibrate a quantised network: of the training data, or from any folder."""

from pathlib import Path

import torch

from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.predictions import list_images
from pocketformer.pipelines.samples import sample
from pocketformer.progress import say
from pocketformer.training.batches import normalisation_of
from pocketformer.training.data import Data, Split
from pocketformer.training.depths import Depth
from pocketformer.training.folders import has_splits
from pocketformer.training.streaming import StreamedImages

IMAGES, _FEW = 128, 32


def calibration_images(
    model: Network, source: str | None, data: Data, stored: tuple[int, int], seed: int
) -> torch.Tensor:
    """Up to `IMAGES` images (N, 3, H, W) as `model` takes them, chosen by the seed, all classes alike.

    Of the fit split, never of what is tested on: that of `data` without `source`, else that of the data set or of
    the folder with train/. Of any other folder, images at any depth (no classes needed); those that cannot be read
    are passed over. Raises `UserError` if there are none, and for a folder inside the data's own, which the splits do
    not know, or around it.
    """
    if source is not None and not _same(source, data):
        _check_apart(Path(source).resolve(), Path(data.source).resolve())
    if source is not None and _is_plain(Path(source), data):
        split = _of_images(source, stored, data.depth)
    elif source is not None and not _same(source, data):
        known = {"uses_search": False, "depth": data.depth}
        split = open_images(source, stored, seed, "skip", 2, as_they_are=True, **known).fit
    else:
        split = data.fit
    images = sample(split, IMAGES, model.resolution, normalisation_of(model), seed)[0]
    if split is not data.fit and isinstance(split.images, StreamedImages) and (unread := split.images.note()):
        say(f"note: --calibration {source}: {unread}")
    if len(images) < _FEW:
        say(f"note: int8 is calibrated on {len(images)} image(s) alone; {IMAGES} like those to come are better")
    return images


def _check_apart(folder: Path, data: Path) -> None:
    if not data.is_dir():  # a name of a data set
        return
    if data in folder.parents:
        raise UserError(
            f"--calibration {folder} lies within {data}, whose splits decide what is tested on: give {data} itself, or "
            "images of another place"
        )
    if folder in data.parents:
        raise UserError(
            f"--calibration {folder} holds {data}, some of which is tested on: give {data} itself, or images of "
            "another place"
        )


def _is_plain(path: Path, data: Data) -> bool:
    """Whether it is an image, or a folder of images that are in no split."""
    return path.exists() and not _same(path, data) and not (path.is_dir() and has_splits(path))


def _same(source: str | Path, data: Data) -> bool:
    return Path(source).resolve() == Path(data.source).resolve()


def _of_images(source: str, stored: tuple[int, int], depth: Depth) -> Split:
    """As `predict` lists them, without classes."""
    found = list_images([source]).found(source)
    images = StreamedImages(found, stored, True, 0, depth)
    return Split("calibration", images, torch.zeros(len(found), dtype=torch.long))
