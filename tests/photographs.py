"""Photographs of every size, in class folders and in batches. Shared by the tests of streams and of transforms."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketformer.training.batches import Augmentation, train_batches
from pocketformer.training.data import Data, Split, open_data

SIZE = (20, 24)
FULL = Augmentation(scale=(0.08, 1.0), erase=0.25, randaugment="rand-m9-mstd0.5-inc1", repeats=3)
CLASSES = ("cat", "dog", "emu")


def photo(seed: int) -> Image.Image:
    """Smooth noise of a size of its own, as photographs have; large enough that some JPEGs are drafted."""
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(30, 400, 2))
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, each: int = 8, first: int = 0) -> Path:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            photo(first + 100 * label + i).save(folder / name / f"{i:03}.jpg", quality=85)
    return folder


def write_photos(root: Path) -> Path:
    """Classes under train/ and val/; a photograph turned by its EXIF data, a PNG and a grey one among them."""
    fill(root / "train")
    fill(root / "val", each=3, first=50)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(900).save(root / "train" / "cat" / "000.jpg", exif=exif)
    (root / "train" / "dog" / "000.jpg").unlink()
    photo(901).save(root / "train" / "dog" / "000.png")
    photo(902).convert("L").save(root / "train" / "emu" / "000.jpg")
    return root


def copied(photos: Path, folder: Path) -> Path:
    return Path(shutil.copytree(photos, folder / "copy"))


def stream(root: Path | str, **options) -> Data:
    return open_data(root, **{"size": SIZE, "stream": True, **options})


def made(split: Split, workers: int = 0, first: int = 0, last: int = 5, **options):
    values = {"batch_size": 6, "size": (16, 18), "augmentation": FULL, "seed": 3, **options}
    return list(train_batches(split, workers=workers, **values).steps(first, last))


def equal(one, two) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message
