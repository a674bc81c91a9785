"""Image sets as `.npz` archives of JPEG bytes: `data` uint8, one file after another; `off` int64 (N + 1,), where each
begins; `label` (N,), `split` (N,), 0 train and 1 test, `classes`.

    python benchmarks/archives.py ARCHIVE FOLDER

writes the files of one as a folder of images, as `pocketformer --data` takes them.
"""

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pocketformer.training.data import Data, open_data
from pocketformer.training.sources import Found, Sample


@dataclass(frozen=True, eq=False)
class Archive:
    """Images of an archive, as a source: train first, then test."""

    data: np.ndarray
    offsets: np.ndarray
    targets: np.ndarray
    rows: np.ndarray

    def load(self, row: int) -> Sample:
        begin, end = self.offsets[self.rows[row]], self.offsets[self.rows[row] + 1]
        raw = self.data[begin:end].tobytes()
        return Sample(Image.open(io.BytesIO(raw)), raw, int(self.targets[row]))

    def name(self, row: int) -> str:
        return f"image {row}"

    def labels(self) -> np.ndarray:
        return self.targets


def read(path: Path, size: int) -> Data:
    """The images at `size` px, split once (seed 0) whatever the seed of a training is."""
    with np.load(path) as found:
        content = dict(found)
    rows = np.argsort(content["split"], kind="stable")
    archive = Archive(content["data"], content["off"], content["label"][rows].astype(np.int64), rows)
    train_count = int((content["split"] == 0).sum())
    source = Found(
        source=path.name,
        classes=tuple(map(str, content["classes"])),
        train=train_count,
        test=len(rows) - train_count,
        stamp="",
        name=archive.name,
        load=archive.load,
        labels=archive.labels,
        identify=archive.name,
    )
    return open_data(source, size=(size, size), stream=False)


def unpack(path: Path, folder: Path) -> int:
    """Writes the files of an archive to FOLDER/train/CLASS and FOLDER/val/CLASS, unchanged; returns how many."""
    with np.load(path) as found:
        content = dict(found)
    for row, (label, split) in enumerate(zip(content["label"], content["split"], strict=True)):
        place = folder / ("train", "val")[int(split)] / str(content["classes"][int(label)])
        place.mkdir(parents=True, exist_ok=True)
        begin, end = content["off"][row], content["off"][row + 1]
        (place / f"{row:06}.jpg").write_bytes(content["data"][begin:end].tobytes())
    return len(content["label"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(f"{args.folder}: {unpack(args.archive, args.folder):,} images")
