"""Data sets that timm's `create_dataset` takes: torch/…, hfds/…, hfids/…, tfds/…, wds/…"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from pocketformer import ranks
from pocketformer.errors import UserError
from pocketformer.training.opening import open_image
from pocketformer.training.shards import find_shards
from pocketformer.training.sources import Found, Load, Sample, stamp_of

PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow-datasets"}
HOME_VARIABLE = "POCKETFORMER_DATASETS"
# What data sets call the split to test on, best first (labels of a `test` split may be withheld).
TEST_SPLITS = ("validation", "val", "valid", "test")


def dataset_home() -> Path:
    """Where downloaded data sets are kept: $POCKETFORMER_DATASETS, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(HOME_VARIABLE) or Path(cache) / "pocketformer" / "datasets")


@dataclass(frozen=True, eq=False)
class _MapSets:
    """The splits of a data set of timm, one after the other, each with random access."""

    parts: tuple[Any, ...]
    words: str  # which data set, in which version

    def load(self, row: int) -> Sample:
        part, number = self._place(row)
        return _load_item(part, number)

    def name(self, row: int) -> str:
        part, number = self._place(row)
        return f"{'train' if part is self.parts[0] else 'test'} image {number}"

    def identify(self, row: int) -> str:
        return f"{self.words} {self.name(row)}"

    def labels(self) -> np.ndarray:
        return np.array([_label(label) for part in self.parts for label in _targets(part)], np.int64)

    def _place(self, row: int) -> tuple[Any, int]:
        first = len(self.parts[0])
        return (self.parts[0], row) if row < first else (self.parts[1], row - first)


def find_named(source: str, prefix: str, name: str) -> Found:
    """Finds the train and the test split of a data set of timm; downloads it where its library can.

    Sets that are read in order (hfids, tfds, wds on the web) are refused under `torchrun`: their readers would give
    each process its share only.
    """
    if prefix == "torch" and name.lower() in ("folder", "image_folder"):
        raise UserError(f"{source}: give the path of the folder itself")
    if prefix == "wds" and "://" not in name:
        return find_shards(source, Path(name) if Path(name).is_dir() else dataset_home() / name, TEST_SPLITS)
    (train, _), (test, split) = (_create(source, prefix, name, names) for names in (("train",), TEST_SPLITS))
    if train is None:
        raise UserError(f"{source}: has no split named train")
    parts = [part for part in (train, test) if part is not None]
    counts = [len(part) for part in parts]
    if not all(counts):
        raise UserError(f"{source}: does not say how many images it has")
    reader = getattr(parts[0], "reader", None)
    names = getattr(parts[0], "classes", None)
    if names is None and getattr(reader, "class_to_idx", None):
        names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    paths, *words = _identity(source, parts)
    facts = {
        "source": source,
        "classes": tuple(map(_class_name, names or ())),
        "train": counts[0],
        "test": sum(counts[1:]),
        "stamp": stamp_of(paths, *words),
        "notes": () if split in (None, "test") else (f"the test split is the data set's {split}",),
    }
    if not any(isinstance(part, IterableDataset) for part in parts):
        sets = _MapSets(tuple(parts), " ".join(words))
        return Found(**facts, name=sets.name, load=sets.load, labels=sets.labels, identify=sets.identify)

    if ranks.count() > 1:
        raise UserError(
            f"{source}: is read in order, and its reader would give each process of torchrun another part of it: train "
            "in one process, or write the images into a folder"
        )

    def in_order() -> Iterator[tuple[int, Load]]:
        for part, count, first in zip(parts, counts, (0, counts[0]), strict=False):
            for i, item in enumerate(islice(part, count)):
                yield first + i, partial(_as_sample, *item)

    def name_of(row: int) -> str:
        # Its reader leaves out what it cannot read, and which it was is not known.
        return f"a {'train' if row < counts[0] else 'test'} image"

    if prefix == "wds":
        why = "its shards are on the web: download them into a folder and give wds/FOLDER"
    else:
        why = f"{prefix}/ reads images in one order only"
    return Found(**facts, name=name_of, in_order=in_order, why_in_order=why)


def _create(source: str, prefix: str, name: str, splits: tuple[str, ...]) -> tuple[Any, str | None]:
    """The first of the splits that the data set has, through timm, and its name; None if it has none of them."""
    from timm.data import create_dataset

    home = dataset_home()
    root: str | None = None  # Hugging Face and TensorFlow data sets have folders of their own
    if prefix == "torch":
        root = str(home)
    elif prefix == "wds":
        root = name
    for split in splits:
        try:
            # Some readers print advice: stdout belongs to results.
            with contextlib.redirect_stdout(sys.stderr):
                columns = _columns(name, split) if prefix == "hfds" else {}
                return create_dataset(source, root=root, split=split, download=True, **columns), split
        except ImportError as error:
            package = PACKAGES.get(prefix, error.name)
            raise UserError(f"{source}: cannot be obtained without the package {package} ({error})") from None
        except Exception as error:  # whatever a library raises, the user sees one line
            if "split" in str(error).replace(name, "").lower():  # all of them say so in words only
                continue
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            place = f" (looked for in {root})" if root else ""
            raise UserError(f"{source}: cannot be obtained{place}: {reason}") from None
    return None, None


def _columns(name: str, split: str) -> dict[str, str]:
    """Image and label columns of a Hugging Face data set, whose names vary (timm expects image and label)."""
    import datasets

    features = datasets.load_dataset(name, split=split).features
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return {k: found[0] for k, found in (("input_key", images), ("target_key", labels)) if found}


def _load_item(dataset: Any, index: int) -> Sample:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return _as_sample(*dataset[index])
    # Not through the data set: it replaces an image that cannot be read by the next one.
    file, label = reader[index]
    with file:
        raw = file.read()
    return Sample(open_image(io.BytesIO(raw)), raw, _label(label))


def _targets(dataset: Any) -> Iterator[Any]:
    """Labels of a data set with random access, in order; where it keeps no list of them, its items are opened."""
    if hasattr(getattr(dataset, "reader", None), "iter_targets"):
        return iter(dataset.reader.iter_targets())
    for name in ("targets", "labels", "_labels"):
        listed = getattr(dataset, name, None)
        if listed is not None and not callable(listed) and len(listed) == len(dataset):
            return iter(torch.as_tensor(listed).tolist())
    return (_load_item(dataset, i).label for i in range(len(dataset)))


def _as_sample(image: Image.Image, label: Any) -> Sample:
    return Sample(image, f"{image.mode}{image.size}".encode() + image.tobytes(), _label(label))


def _label(label: Any) -> int:
    if isinstance(label, bool) or not hasattr(label, "__index__") or int(label) < 0:
        raise UserError(f"a label is {label!r}, not the number of a class: this data set is not for classification")
    return int(label)


def _class_name(name: Any) -> str:
    return str(name[0]) if isinstance(name, tuple) else str(name)  # ImageNet's are tuples of synonyms


def _identity(source: str, parts: list[Any]) -> tuple:
    """Arguments of `stamp_of`: what tells one version of a named data set from another."""
    words, paths = [source], []
    for part in parts:
        reader = getattr(part, "reader", None)
        words += [str(len(part)), str(getattr(getattr(reader, "dataset", None), "_fingerprint", ""))]
        words += [str(getattr(getattr(getattr(reader, "builder", None), "info", None), "version", ""))]
        paths += [path for path, _ in getattr(part, "samples", None) or ()]
        shards = getattr(getattr(reader, "split_info", None), "filenames", None) or ()
        paths += [os.path.join(getattr(reader, "root", None) or "", str(shard)) for shard in shards]
    return paths, *words
