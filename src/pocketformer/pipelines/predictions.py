"""`predict`: the classes of any images, which are prepared as `evaluate` prepares them."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.pipelines.classifiers import Classifier
from pocketformer.progress import say, stage
from pocketformer.report.gallery import Picture, write_gallery
from pocketformer.training.batches import eval_batches
from pocketformer.training.data import Split
from pocketformer.training.opening import open_image
from pocketformer.training.sources import Found, Sample
from pocketformer.training.streaming import StreamedImages, preflight
from pocketformer.training.strings import Strings
from pocketformer.training.trees import Tree, passed_over, read_tree

_BATCH, _LOOKS = 64, 200
_PICTURES = 2000  # on a page; of more, every second, third, … of each class


@dataclass(frozen=True, eq=False)
class NamedImages:
    """Image files by row, by the paths that a person gave or that lie in the folders given."""

    paths: Strings

    def load(self, row: int) -> Sample:
        raw = Path(self.paths[row]).read_bytes()
        if not raw:
            raise ValueError("empty file")
        return Sample(open_image(io.BytesIO(raw)), raw, 0)

    def name(self, row: int) -> str:
        return files.as_text(self.paths[row])

    def found(self, source: str) -> Found:
        """As a source of images, without classes."""
        return Found(source, (), 0, len(self.paths), "", self.name, load=self.load)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The `top` classes of each image that could be read, the likeliest first: `rows` int64 (N,) into `images`,
    `classes` int64 (N, top), `probabilities` float32 (N, top). `skipped`: row -> why it could not be read. `names` are
    those of all classes; `named`: whether the network knows them, or they are numbers."""

    images: NamedImages
    rows: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    skipped: dict[int, str]
    names: tuple[str, ...]
    named: bool
    picture: Callable[[int], Image.Image | None]  # of a row, whole

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, place: int) -> dict:
        """One image as plain data: "image" and "top", a list of "class" and "probability"."""
        pairs = zip(self.classes[place].tolist(), self.probabilities[place].tolist(), strict=True)
        top = [{"class": self.names[c], "probability": round(p, 6)} for c, p in pairs]
        return {"image": self.images.name(int(self.rows[place])), "top": top}


def predict(network: Classifier, images: NamedImages, top: int, bad_images: str, workers: int) -> Predictions:
    """Runs every image once, decoding a batch ahead; memory does not grow with the images but by their answers.

    `bad_images`: "refuse" looks at all images first and raises `UserError` for those that cannot be read; "skip"
    leaves them out.
    """
    found, accept_bad = images.found("the images"), bad_images == "skip"
    with stage("look at some images" if accept_bad else "check the images") as progress:
        look = preflight(
            found,
            workers,
            lambda done, total: progress.update(done, total=total),
            network.depth,
            _LOOKS if accept_bad else None,
        )
    for note in look.remarks.notes(found.name, look.depth):
        say(f"note: {note}")
    streamed = StreamedImages(found, network.stored_size, accept_bad, workers, look.depth)
    split = Split("images", streamed, torch.arange(len(found)))  # rows for labels: each answer knows its image
    batches = eval_batches(split, _BATCH, network.size, network.normalisation, workers)
    top = min(top, network.num_classes)
    rows, classes, probabilities = [], [], []
    with stage("predict", len(found)) as progress, torch.inference_mode():
        for batch, numbers in batches:
            best = network(batch).double().softmax(1).topk(top)
            rows.append(numbers.numpy())
            classes.append(best.indices.numpy())
            probabilities.append(best.values.float().numpy())
            progress.update(int(numbers[-1]) + 1)
    if not rows:
        raise UserError(f"none of the {len(found)} images can be read: {streamed.note()}")
    if note := streamed.note():
        say(f"note: {note}")
    if network.classes is None:
        say(f"note: {network.name} names no classes: they are given by their numbers, from 0")
    names = network.classes or tuple(map(str, range(network.num_classes)))
    parts = map(np.concatenate, (rows, classes, probabilities))
    return Predictions(images, *parts, streamed.bad, names, network.classes is not None, streamed.whole)


def list_images(names: Sequence[str]) -> NamedImages:
    """The files that a person names, each once; of a folder those in it and in its sub-folders that are images, in
    order. Litter, hidden and other files there are passed over, with a note. Raises `UserError` in one line."""
    paths: list[str] = []
    trees: list[Tree] = []
    for name in names:
        if os.path.isdir(name):
            try:
                tree = read_tree(name)
            except OSError as error:
                raise UserError(f"{name}: cannot be listed: {error.strerror}: {error.filename}") from None
            inside = tree.images()
            if not inside:
                raise UserError(f"{name} holds no images")
            paths += inside
            trees.append(tree)
        elif os.path.exists(name):
            paths.append(name)
        else:
            raise UserError(f"no such image or folder: {name}")
    for note in passed_over(trees, []):
        say(f"note: {note}")
    return NamedImages(Strings(dict.fromkeys(paths)))


def write_csv(found: Predictions, path: Path) -> None:
    """A line an image: image, class_1, probability_1, class_2, …; those that could not be read are left out."""
    heads = [f"{what}_{place}" for place in range(1, found.classes.shape[1] + 1) for what in ("class", "probability")]
    with files.whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as text:
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["image", *heads])
        for place in range(len(found)):
            row = found.of(place)
            lines.writerow([row["image"], *(v for entry in row["top"] for v in (entry["class"], entry["probability"]))])


def write_page(found: Predictions, path: Path, title: str) -> None:
    """A self-contained page of thumbnails, by class, the surest first."""
    chosen = sorted(range(len(found)), key=lambda i: (found.classes[i, 0], -found.probabilities[i, 0]))
    step = -(-len(chosen) // _PICTURES)
    if step > 1:
        say(f"note: the page shows {len(chosen[::step]):,} of the {len(chosen):,} images, evenly from sure to unsure")

    def pictures() -> Iterator[Picture]:
        with stage("draw the page", len(chosen[::step])) as progress:
            for i in chosen[::step]:
                row, entry = int(found.rows[i]), found.of(i)
                texts = [f"{answer['class']} {answer['probability']:.1%}" for answer in entry["top"]]
                if (image := found.picture(row)) is not None:
                    yield Picture(entry["top"][0]["class"], entry["image"], texts, image)
                progress.advance()

    numbers = np.bincount(found.classes[:, 0], minlength=len(found.names))
    groups = {found.names[c]: int(numbers[c]) for c in np.flatnonzero(numbers)}
    write_gallery(path, title, groups, pictures())


def as_dict(found: Predictions, about: dict) -> dict:
    """All of it as plain data: `about`, "classes" (their names; None without), "images" and "skipped"."""
    skipped = [{"image": found.images.name(row), "why": why} for row, why in sorted(found.skipped.items())]
    classes = list(found.names) if found.named else None
    return {**about, "classes": classes, "images": [found.of(i) for i in range(len(found))], "skipped": skipped}


def counted(found: Predictions) -> Iterator[tuple[str, int]]:
    """(class, images whose likeliest class it is), the most frequent first."""
    counts = np.bincount(found.classes[:, 0], minlength=len(found.names))
    return ((found.names[c], int(counts[c])) for c in np.argsort(-counts, kind="stable") if counts[c])


@dataclass(frozen=True)
class Outputs:
    """The files to write: tables (.csv, .json), and a page."""

    tables: tuple[Path, ...] = ()
    page: Path | None = None

    @classmethod
    def named(cls, out: Path | None, page: Path | None) -> "Outputs":
        """By what a person says. Raises `UserError` for names that say no format, before any work is done."""
        if page is not None and (page.suffix.lower() not in (".html", ".htm") or page.is_dir()):
            raise UserError(f"--page {page}: give the name of a file that ends in .html")
        if out is None:
            return cls(page=page)
        if out.suffix.lower() in (".csv", ".json") and not out.is_dir():
            return cls((out,), page)
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file; give one that ends in .csv or .json, or a folder")
        if out.suffix and not out.is_dir():
            raise UserError(f"--out {out}: give the name of a .csv or .json file, or a folder")
        return cls((out / "predictions.csv", out / "predictions.json"), page)

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.tables if self.page is None else (*self.tables, self.page)

    def write(self, found: Predictions, about: dict) -> None:
        for path in self.tables:
            if path.suffix.lower() == ".csv":
                write_csv(found, path)
            else:
                files.write_json(path, as_dict(found, about))
        if self.page is not None:
            write_page(found, self.page, f"{len(found):,} images by {about['checkpoint']}")
