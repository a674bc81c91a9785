"""Pascal VOC's layout of images and masks, as CVAT writes it too: folders for all, and lists of the splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketformer.errors import UserError
from pocketformer.training.sources import some

IMAGES, MASKS = "jpegimages", "segmentationclass"  # in any case
LISTS = "ImageSets/Segmentation"
COLOURS = "labelmap.txt"  # CVAT's list of classes
_WHOLE = ("trainval", "default")  # lists that are for training where there is none of train


def listed(source: str, root: Path, splits: Mapping[str, Sequence[str]], masks: Sequence[str]) -> dict[str, list[str]]:
    """{split: names without their suffix}; `splits`: what each may be called. All `masks` are for training where there
    are no lists. Raises `UserError` for names without a mask."""
    files = {path.stem.lower(): path for path in sorted((root / LISTS).glob("*.txt"))}
    if not files:
        return {"train": list(masks)}
    found = {}
    for split, words in splits.items():
        names = [*words, *(_WHOLE if split == "train" else ())]
        if file := next((files[word] for word in names if word in files), None):
            found[split] = [line.split()[0] for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    known = set(masks)
    for split, names in found.items():
        if missing := [name for name in names if name not in known]:
            what = f"{len(missing)} of {len(names)} names of {split} in {LISTS}/ have no mask"
            raise UserError(f"{source}: {what}: {some(missing)}")
    return {split: names for split, names in found.items() if names}
