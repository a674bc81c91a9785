"""All images and masks of a folder looked at once, before any work begins on them."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer import files
from pocketformer.dense import orientation
from pocketformer.dense.segmentation.folders import Folder, Pairs
from pocketformer.dense.segmentation.labels import Coding
from pocketformer.dense.segmentation.maskfiles import Coloured, Lossy, MaskFile, open_mask
from pocketformer.dense.segmentation.meaning import Values, decide, look_at, refuse_mixed, shades_of
from pocketformer.errors import UserError
from pocketformer.progress import say
from pocketformer.training.colours import UNKNOWN, Seen, see
from pocketformer.training.depths import Depth
from pocketformer.training.opening import open_image, why_unreadable
from pocketformer.training.remarks import Remarks, is_plain
from pocketformer.training.sources import some

_CHECKED_AT = 8  # JPEGs are decoded at an eighth: all of the file is read, and little of it computed

# What can be wrong with a pair, in the order in which it is told; `{n}` of `{total}`.
_WRONG = {
    "image": "{n} of {total} images of {split} cannot be read",
    "mask": "{n} of {total} masks of {split} cannot be read as labels",
    "lossy": "{n} of {total} masks of {split} are compressed with loss, which changes labels",
    "colour": "{n} of {total} masks of {split} cannot be read as labels",
    "size": "{n} of {total} masks of {split} have another size than their image",
    "label": "{n} of {total} masks of {split} have labels outside the class list ({known})",
}
_ADVICE = {
    "lossy": "; save masks anew from the labels as PNG (a JPEG saved as PNG keeps its wrong values)",
    "colour": "; name the colours of the classes by --classes FILE, a line each: NAME R G B",
}


@dataclass(frozen=True)
class Census:
    """Pixels of each label, by split, and a hash of names and contents of all files. `coding`: of these masks; `turns`:
    of each split the masks to turn (see `Pairs`); `notes`: what was taken for what. `depth`: of the images."""

    labels: Mapping[str, Mapping[int, int]]
    fingerprint: str
    coding: Coding = field(default_factory=Coding)
    turns: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    depth: Depth = UNKNOWN

    def num_classes(self, coding: Coding) -> int:
        """Of masks without a list; of masks that are all ignored `UserError`."""
        found = {label for split in self.labels.values() for label in split}
        classes = coding.classes(np.array(sorted(found), np.int32))
        if classes.max(initial=-1) < 0:
            raise UserError("the masks have no label that is not ignored")
        return int(classes.max()) + 1

    def applied(self, folder: Folder) -> Folder:
        """The folder, its masks read as they were found to be."""
        splits = {
            name: replace(pairs, turns=self.turns.get(name, pairs.turns), depth=self.depth)
            for name, pairs in folder.splits.items()
        }
        return replace(folder, splits=splits, coding=self.coding)


@dataclass(frozen=True)
class _Seen:
    """Of a pair: values, or what is wrong (a key of `_WRONG`) and what to tell of it. `drawn`: on the image as "shown"
    or "stored", "either" (both have the mask's size), or "" (EXIF turns nothing); `turn`: the image's orientation, or
    that of the mask's own EXIF. `image`: what was seen of its pixels, and whether they are of one colour."""

    digest: bytes = b""
    values: Values = field(default_factory=Values)
    wrong: str = ""
    what: str = ""
    colours: tuple = ()
    drawn: str = ""
    turn: int = 1
    contrast: float | None = None
    image: tuple[Seen, bool] | None = None


def take_census(
    folder: Folder,
    splits: Iterable[str],
    num_classes: int | None,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
    exif: str = "auto",
    depth: Depth = UNKNOWN,
) -> Census:
    """Looks at every image and mask of the splits; `progress` gets how many are done; `workers`: threads.

    `num_classes` None: there is no list of classes, and the masks themselves tell what their values mean. `exif`: on
    which form of turned images masks were drawn where their sizes do not tell (`orientation.settle`). `depth`: of
    images of more than 8 bits, as far as it is known; the rest is decided by all that are looked at.

    Images or masks that cannot be read, masks of another size than their image, and labels that are no class are told
    in one line a kind and split, with the count and the first three; then `UserError`.
    """
    seen: dict[str, list[_Seen]] = {}
    digest = hashlib.sha256(repr((folder.classes, folder.coding)).encode())
    done, remarks, names = 0, Remarks(), []
    for name in splits:
        pairs = folder.splits[name]
        seen[name] = []
        names += pairs.images

        def look(row: int, pairs: Pairs = pairs) -> _Seen:
            return _look(pairs, row, folder.coding, num_classes, depth)

        with ThreadPoolExecutor(workers) if workers > 0 else nullcontext() as pool:
            for found in (pool.map if pool else map)(look, range(len(pairs))):
                if found.image is not None:
                    remarks.add(done, *found.image)
                done += 1
                digest.update(found.digest)
                seen[name].append(replace(found, image=None))
                if progress:
                    progress(done)
    every = Values()
    for found in (each for split in seen.values() for each in split):
        every.add(found.values)
    coding = None if num_classes is None else shades_of(folder.source, every, folder.coding, num_classes)
    coding, notes = coding or (folder.coding, [])
    refuse_mixed(folder.source, every.palettes, listed=num_classes is not None)
    _refuse(folder, seen, num_classes, labels=not coding.values or coding == folder.coding)
    if num_classes is None:
        coding, notes = decide(folder.source, every, coding)
    turns, more = _turns(seen, exif)
    labels = {name: _counts(split, coding) for name, split in seen.items()}
    depth = depth.within(remarks.extent)
    more += remarks.notes(names.__getitem__, depth)
    return Census(labels, digest.hexdigest()[:16], coding, turns, (*notes, *more), depth)


def _refuse(folder: Folder, seen: Mapping[str, list[_Seen]], num_classes: int | None, labels: bool) -> None:
    """Says what is wrong with any file, a line each kind and split, and raises `UserError`; `labels`: also of labels
    that are not in the list."""
    lines: list[str] = []
    mistakes, advice = 0, ""
    known = "none is below 0" if num_classes is None else folder.coding.known(num_classes)
    for name, split in seen.items():
        for kind in _WRONG:
            wrong = [each for each in split if each.wrong == kind]
            if not wrong or (kind == "label" and not labels):
                continue
            what = _WRONG[kind].format(n=len(wrong), total=len(split), split=name, known=known)
            told = f"{some([each.what for each in wrong])}{_ADVICE.get(kind, '')}"
            if colours := sorted({colour for each in wrong for colour in each.colours}):
                told += f"; here {', '.join(map(str, colours[:6]))}{', …' if len(colours) > 6 else ''}"
            lines.append(f"{folder.source}: {what}: {told}")
            mistakes += len(wrong)
            advice += _ADVICE.get(kind, "") if _ADVICE.get(kind, "") not in advice else ""
    if len(lines) > 1:
        for line in lines:
            say(line)
        raise UserError(f"{folder.source}: {mistakes} files of {len(lines)} kinds cannot be used, named above{advice}")
    if lines:
        raise UserError(lines[0])


def _counts(split: Iterable[_Seen], coding: Coding) -> dict[int, int]:
    """Pixels by label, those of masks of 1 bit as `read_mask` has them."""
    found = Counter()
    white = coding.values if len(coding.values) == 2 else (0, 1)
    for each in split:
        found.update(each.values.counts)
        found.update({white[value]: n for value, n in each.values.bits.items()})
    return dict(found)


def _turns(seen: Mapping[str, list[_Seen]], exif: str) -> tuple[dict[str, dict[int, int]], list[str]]:
    """The masks to turn, and notes where EXIF matters."""
    every = [each for split in seen.values() for each in split]
    count = Counter(each.drawn for each in every)
    notes = []
    contrasts = [each.contrast for each in every if each.contrast is not None]
    settled = orientation.settle(exif, count["shown"], count["stored"], contrasts)
    if count["stored"]:
        notes.append(
            f"{_masks(count['stored'], 'has', 'have')} the size of the image as stored, before EXIF turns it: "
            "turned along"
        )
    if count["either"]:
        how = "as stored, so that they are turned with them" if settled.stored else "as shown"
        other = "" if settled.why.startswith("--") else f"; if not: --exif {'shown' if settled.stored else 'stored'}"
        fit = _masks(count["either"], "fits its image", "fit their images")
        notes.append(
            f"{fit} with and without the turn that EXIF asks for (square, or not "
            f"turned sideways); taken as drawn on the images {how}: {settled.why}{other}"
        )
    drawn = {"stored", "own"} | ({"either"} if settled.stored else set())
    turns = {
        name: {row: each.turn for row, each in enumerate(split) if each.drawn in drawn} for name, split in seen.items()
    }
    return {name: rows for name, rows in turns.items() if rows}, notes


def _masks(count: int, one: str, many: str) -> str:
    return f"{count} mask {one}" if count == 1 else f"{count} masks {many}"


def _look(pairs: Pairs, row: int, coding: Coding, num_classes: int | None, depth: Depth) -> _Seen:
    image_name, mask_name = pairs.images[row], pairs.masks[row]
    digest = hashlib.sha256(f"{image_name}\n{mask_name}\n".encode("utf-8", "surrogateescape"))
    try:
        raw = (pairs.root / image_name).read_bytes()
        digest.update(raw)
        stored, turn, image = _seen(raw, depth)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like
        return _Seen(wrong="image", what=f"{image_name} ({why_unreadable(error)})")
    try:
        raw_mask = (pairs.root / mask_name).read_bytes()
        digest.update(raw_mask)
        mask = open_mask(io.BytesIO(raw_mask), coding)
    except MemoryError:
        raise
    except Lossy as error:
        return _Seen(wrong="lossy", what=f"{mask_name} ({error})")
    except Coloured as error:
        return _Seen(wrong="colour", what=f"{mask_name} ({error})", colours=tuple(error.colours))
    except Exception as error:
        return _Seen(wrong="mask", what=f"{mask_name} ({why_unreadable(error)})")
    drawn = _drawn(stored, turn, mask)
    if drawn is None:
        size, own = orientation.shown(stored, turn), mask.labels.shape
        sizes = f"{own[1]}x{own[0]} px, its image {size[1]}x{size[0]}"
        return _Seen(wrong="size", what=f"{mask_name} ({sizes}{' as EXIF turns it' if turn != 1 else ''})")
    values = _values(mask, num_classes)
    outside = [coding.named(v) for v in values.counts if not coding.valid(v, num_classes)]
    if len(coding.values) != 2:
        outside += [coding.named(v) for v in values.bits if not coding.valid(v, num_classes)]
    if outside:
        seen = look_at(mask.labels) if not mask.bits else values
        return _Seen(wrong="label", what=f"{mask_name} ({some(outside)})", values=seen)
    contrast = _contrast(raw, mask.labels, turn) if drawn == "either" else None
    return _Seen(
        digest.digest(), values, drawn=drawn, turn=mask.turn if drawn == "own" else turn, contrast=contrast, image=image
    )


def _values(mask: MaskFile, num_classes: int | None) -> Values:
    palettes = {value: {colour} for value, colour in mask.palette.items()}
    if num_classes is None and not mask.bits:
        return replace(look_at(mask.labels), palettes=palettes)
    values, counts = np.unique(mask.labels, return_counts=True)
    counted = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return Values(bits=counted) if mask.bits else Values(counted, palettes=palettes)


def _drawn(stored: orientation.Size, turn: int, mask: MaskFile) -> str | None:
    """How a mask lies on its image (see `_Seen`; "own": its own EXIF turns it); None: it has another size."""
    size, own = orientation.shown(stored, turn), mask.labels.shape
    if mask.turn != 1 and orientation.shown(own, mask.turn) == size:
        return "own"
    if turn == 1 or (own == size != stored):
        return ("" if turn == 1 else "shown") if own == size else None
    if own != stored:
        return None
    return "either" if own == size else "stored"


def _seen(raw: bytes, depth: Depth) -> tuple[orientation.Size, int, tuple[Seen, bool]]:
    """Height and width of an image as stored, and its orientation; what is seen of it, all of it being read."""
    with open_image(io.BytesIO(raw)) as image:

        def decode(image: Image.Image) -> Seen:
            image.draft(None, tuple(max(1, side // _CHECKED_AT) for side in image.size))
            return see(image, depth)

        found, stored, turn = orientation.frame(image, decode)
    plain = is_plain(*zip(*found.image.getextrema(), strict=True))
    return stored, turn, (replace(found, image=None), plain)


def _contrast(raw: bytes, labels: np.ndarray, turn: int) -> float:
    with open_image(io.BytesIO(raw)) as image:
        stored = orientation.undone(see(image).image, turn)
        return orientation.contrast(np.asarray(stored.convert("L")), labels, turn)


def read_census(path: Path, stamp: str) -> Census | None:
    """That of an earlier look at the very same files; None if there was none."""
    if not path.is_file():
        return None
    try:
        kept = files.read_json(path)
        if kept["stamp"] != stamp:
            return None
        labels, turns = (_by_split(kept[name]) for name in ("labels", "turns"))
        given = kept["coding"]
        coding = Coding(**{**given, **{name: tuple(given[name]) for name in ("values", "void")}})
        notes = tuple(map(str, kept["notes"]))
        return Census(labels, str(kept["fingerprint"]), coding, turns, notes, Depth.of_record({"depth": kept["depth"]}))
    except (UserError, KeyError, TypeError, ValueError, AttributeError):  # damaged, or an older one's: looked at again
        return None


def _by_split(kept: Mapping) -> dict[str, dict[int, int]]:
    return {name: {int(k): int(n) for k, n in split.items()} for name, split in kept.items()}


def write_census(path: Path, stamp: str, census: Census) -> None:
    files.write_json(path, {"stamp": stamp, **asdict(census)})
