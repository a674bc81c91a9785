"""Images that calibrate a quantised network: of the training data, or from any folder."""

import os
from pathlib import Path

import numpy as np
import torch

from pocketformer.errors import UserError
from pocketformer.models import Network
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.samples import sample
from pocketformer.training.batches import eval_batches, normalisation_of
from pocketformer.training.data import Data, Split
from pocketformer.training.decoding import to_pixels
from pocketformer.training.depths import Depth
from pocketformer.training.folders import has_splits
from pocketformer.training.opening import open_image

IMAGES = 128


def calibration_images(
    model: Network, source: str | None, data: Data, stored: tuple[int, int], seed: int
) -> torch.Tensor:
    """Up to `IMAGES` images (N, 3, H, W) as `model` takes them, chosen by the seed, all classes alike.

    Of the fit split, never of what is tested on: that of `data` without `source`, else that of the data set or of
    the folder with train/. Of any other folder, files at any depth (no classes needed). Raises `UserError` if
    there are none, and for a folder inside the data's own, which the splits do not know.
    """
    if source is not None and Path(data.source).resolve() in Path(source).resolve().parents:
        raise UserError(
            f"--calibration {source} lies within {data.source}, whose splits decide what is tested on: give "
            f"{data.source} itself, or images of another place"
        )
    if source is not None and _is_plain(Path(source), data):
        split = _of_folder(Path(source), stored, seed, data.depth)
        return next(iter(eval_batches(split, IMAGES, model.resolution, normalisation_of(model))))[0]
    if source is not None and not _same(source, data):
        known = {"uses_search": False, "depth": data.depth}
        data = open_images(source, stored, seed, "skip", 2, as_they_are=True, **known)
    return sample(data.fit, IMAGES, model.resolution, normalisation_of(model), seed)[0]


def _is_plain(folder: Path, data: Data) -> bool:
    """Whether it is a folder of images that are in no split."""
    return folder.is_dir() and not _same(folder, data) and not has_splits(folder)


def _same(source: str | Path, data: Data) -> bool:
    return Path(source).resolve() == Path(data.source).resolve()


def _of_folder(folder: Path, stored: tuple[int, int], seed: int, depth: Depth) -> Split:
    paths = sorted(Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    pixels = []
    for index in np.random.default_rng(seed).permutation(len(paths)):
        try:
            with open_image(paths[index]) as image:
                pixels.append(to_pixels(image, stored, depth))
        except (UserError, MemoryError):
            raise
        except Exception:  # not an image, or a broken one: decoders raise whatever they like
            continue
        if len(pixels) == IMAGES:
            break
    if not pixels:
        raise UserError(f"--calibration {folder}: holds no images that can be read ({len(paths)} files)")
    return Split("calibration", torch.from_numpy(np.stack(pixels)), torch.zeros(len(pixels), dtype=torch.long))
