"""Reading the images of a job, with progress and notes for the person; and single ones that a person names."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer import files, ranks
from pocketformer.errors import UserError
from pocketformer.progress import say, stage
from pocketformer.runs import Run, read_config
from pocketformer.training.balance import labels_of, uneven
from pocketformer.training.colours import UNKNOWN, Seen, see
from pocketformer.training.data import Data, open_data, open_labelled, streams
from pocketformer.training.depths import Depth
from pocketformer.training.opening import open_image, why_unreadable
from pocketformer.training.remarks import Remarks, is_plain
from pocketformer.training.sources import PREFIXES, find, some
from pocketformer.training.trees import image_endings

LEARNED = "learned.npy"  # in a run's folder


def open_images(
    source: str,
    size: tuple[int, int],
    seed: int,
    bad_images: str,
    workers: int,
    stream: bool | None = None,
    as_they_are: bool = False,
    uses_search: bool = True,
    group_by: str | None = None,
    depth: Depth = UNKNOWN,
) -> Data:
    """`open_data` with a progress bar; says what is worth saying, and how many classes and images there are.

    `stream`: None: streamed where the images are too many for memory, or, with `as_they_are`, wherever they can be
    (RandAugment is for images of their own size, not for stored ones). `uses_search`: whether the job does, so that its
    notes matter. Of several processes the first looks at all images of a stream before the work begins. `depth`: of
    images of more than 8 bits, as far as it is known.
    """
    found, check = find(source), ranks.first()
    if as_they_are and stream is None and found.load is not None:
        stream = True
    streamed = streams(found, size, stream)
    options = {"size": size, "seed": seed, "bad_images": bad_images, "workers": workers, "stream": stream}
    options |= {"group_by": group_by}
    if streamed and not check:
        depth = ranks.from_first(None)  # by all images, at which the first process looks
    if streamed and (bad_images == "skip" or not check):
        data = open_data(found, **options, check=check, depth=depth)
    else:
        with stage("check the images" if streamed else "read the images", len(found)) as progress:
            update = lambda done, total: progress.update(done, total=total)  # noqa: E731
            data = open_data(found, **options, check=check, depth=depth, progress=update)
    if streamed and check:
        ranks.from_first(data.depth)
    tell_of(data, uses_search)
    return data


def open_labelled_images(
    source: str,
    classes: Sequence[str] | None,
    size: tuple[int, int],
    bad_images: str,
    workers: int,
    depth: Depth = UNKNOWN,
) -> Data:
    """`open_labelled` with a progress bar; says what is worth saying."""
    options = {"size": size, "bad_images": bad_images, "workers": workers, "check": ranks.first(), "depth": depth}
    with stage("read the images") as progress:
        update = lambda done, total: progress.update(done, total=total)  # noqa: E731
        data = open_labelled(source, classes, **options, progress=update)
    tell_of(data, uses_search=False)
    return data


def tell_of(data: Data, uses_search: bool = True) -> None:
    """Says what is worth saying of images that were opened: notes, and how many classes and images there are."""
    for note in data.notes:
        if uses_search or note not in data.search_notes:
            say(f"note: {note}")
    for warning in data.warnings:
        say(f"warning: {warning}")
    say(data.summary())


def say_uneven(data: Data, balance: str) -> None:
    """Tells of classes with many more images than others, where a training does nothing about them."""
    counts = np.bincount(labels_of(data.final), minlength=len(data.classes))
    if balance != "none" or not uneven(counts):
        return
    most, least = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
    say(
        f"note: uneven classes: {data.classes[most]} has {counts[most]:,} images to learn from, {data.classes[least]} "
        f"{counts[least]:,}; --balance sampling (or weights) makes all classes count alike"
    )


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return some(list(names), 4)


def whereabouts_of(source: str) -> dict[str, str]:
    """{"place": the path} of images that are named from the working folder, for who asks from another one."""
    place = os.path.abspath(source)
    return {"place": place} if place != source and Path(source).exists() else {}


def whereabouts(folder: str | os.PathLike, named: str, place: str | None) -> str:
    """Where the images that `folder` learned from were: as they were named, or from the folder that the name was given
    in. Raises `UserError` if they are at neither."""
    if Path(named).exists() or named == "embedded" or named.partition("/")[0].lower() in PREFIXES:
        return named
    if place is not None and Path(place).exists():
        say(f"note: {folder} has its images from {named}; they are taken from {place}")
        return place
    raise UserError(f"{named}, from which {folder} has its images, is not there: say where they are now (--data)")


def identity(data: Data) -> dict:
    """What tells these images and their splits from others. A stream is known by the names and sizes of its files."""
    counts = {split.name: len(split) for split in (data.fit, data.search, data.test)}
    names = ("fingerprint", "split_fingerprint", "test_fingerprint")
    fingerprints = {name: getattr(data, name) for name in names}
    return {**fingerprints, "listed": dict(data.listed), "streamed": data.fit.streamed, "images": counts}


def record_images(run: Run, data: Data) -> None:
    """What the run learns from, or is scored on. Resumed it must find the same, which may have other names by then."""
    run.record(data_fingerprint=data.fingerprint, split_fingerprint=data.split_fingerprint)
    run.record(test_fingerprint=data.test_fingerprint)
    keep_learned(run.path, data)
    if ranks.first() and "listed" not in read_config(run.path)["facts"]:
        run.record(listed=dict(data.listed))


def keep_learned(folder: Path, data: Data) -> None:
    """Keeps a hash of each image that a run learns from (fit and search), so that it is known again in any folder."""
    if ranks.first() and data.keys is not None and not (folder / LEARNED).exists():
        with files.whole(folder / LEARNED) as temporary, open(temporary, "wb") as file:
            np.save(file, np.unique(data.keys[data.final.indices.numpy()]))


def count_learned(run: Path | None, data: Data) -> int:
    """How many of the test images are among those that a run learned from, as far as is known."""
    if run is None or data.keys is None or not (run / LEARNED).is_file():
        return 0
    try:
        learned = np.load(run / LEARNED, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # a damaged list tells nothing
        return 0
    return int(np.isin(data.keys[data.test.indices.numpy()], learned).sum())


def same_images(one: Mapping | None, other: Mapping | None) -> bool:
    """Whether two trainings learned from the same images, split alike, as far as their `identity` tells."""
    if one is None or other is None:
        return one is other
    if one.get("listed") and other.get("listed"):
        return one["listed"] == other["listed"]
    return one["streamed"] != other["streamed"] or one["split_fingerprint"] == other["split_fingerprint"]


def split_otherwise(seen: Mapping, data: Data) -> tuple[bool, bool]:
    """Whether these are the images of `seen`, an `identity`, but split otherwise; and whether test is another part of
    them. Of other images nothing is known."""
    then, now = seen, identity(data)
    if then.get("listed") and now["listed"]:  # whether streamed, known by their files, or read, known by their pixels
        then, now = then["listed"], now["listed"]
    if then["fingerprint"] != now["fingerprint"] or then["split_fingerprint"] == now["split_fingerprint"]:
        return False, False
    return True, then.get("test_fingerprint") != now["test_fingerprint"]


def refuse_seen(init: str, seen: Mapping, seed: int, data: Data, validate: bool) -> None:
    """Raises `UserError` if weights that learned from these images, split by another seed, would be tested on some of
    them here, or with `validate` chosen by them."""
    differs, tested = split_otherwise(seen, data)
    if tested or (differs and validate):
        raise UserError(
            f"--init {init} learned from these images as --seed {seed} splits them, also from some that are "
            f"{'tested on' if tested else 'held out by --validate'} here: give --seed {seed}"
        )


def say_unreadable(data: Data) -> None:
    """Tells of the images that could not be read since they were opened."""
    if note := data.late_note():
        say(f"note: {note}")


def find_images(names: Sequence[str]) -> dict[str, Path]:
    """The images that a person names, by the names that their results get; a folder stands for the images in it."""
    suffixes, paths = image_endings(), []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path} holds no images")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"no such image: {path}")
    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(path.stem, path) != path:
            raise UserError(f"{found[path.stem]} and {path} would be written under the same name: predict them apart")
    return found


def check_readable(paths: Iterable[Path], depth: Depth = UNKNOWN) -> Depth:
    """Looks at all images before any is worked on, and says what there is to say of their pixels. Raises `UserError`
    that counts those that cannot be read, with the first three. Returns `depth`, completed by the values of all."""
    paths, bad, remarks = list(paths), [], Remarks()
    with stage("check the images", len(paths)) as progress:
        for row, path in enumerate(paths):
            try:
                seen = _seen(path, depth)
                remarks.add(row, seen, is_plain(*zip(*seen.image.getextrema(), strict=True)))
            except UserError as error:
                bad.append(str(error))
            progress.advance()
    if len(bad) == 1:
        raise UserError(bad[0])
    if bad:
        more = "; …" if len(bad) > 3 else ""
        raise UserError(f"{len(bad)} of {len(paths)} images cannot be read: {'; '.join(bad[:3])}{more}")
    depth = depth.within(remarks.extent)
    for note in remarks.notes(lambda row: str(paths[row]), depth):
        say(f"note: {note}")
    return depth


def check_results(paths: Iterable[Path], results: Iterable[str], asked: Sequence[str], out: Path) -> None:
    """Raises `UserError` where results would take the place of the images at `paths`, or lie in a folder that is
    `asked` for, so that they would be taken for images the next time."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if any(Path(name).is_dir() and Path(name).resolve() == out.resolve() for name in asked):
        raise UserError(f"--out {out} is the folder of the images: give another one")
    images = {path.resolve() for path in paths}
    for name in results:
        if (out / name).resolve() in images:
            raise UserError(f"--out {out}: {name} there is an image that is to be looked at: give another folder")


def read_image(path: Path, depth: Depth = UNKNOWN) -> Image.Image:
    """RGB, upright. Raises `UserError` if it cannot be read."""
    return _seen(path, depth).image


def _seen(path: Path, depth: Depth) -> Seen:
    try:
        with open_image(path) as image:
            return see(image, depth)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they like
        raise UserError(f"{path} cannot be read as an image ({why_unreadable(error)})") from None
