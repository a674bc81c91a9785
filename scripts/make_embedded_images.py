"""Makes the embedded quickstart images out of Debian's package `dataset-fashion-mnist`.

    python scripts/make_embedded_images.py [FOLDER_WITH_THE_IDX_FILES] [OUT.npz]

Takes a seeded, class-balanced 6,000 of the training images and 2,000 of the test images of Fashion-MNIST
(28x28 px, grey, MIT licence). The same input gives the same bytes: members of the archive carry no date.
"""

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parents[1] / "src/pocketformer/training/embedded/fashion_mnist_6k2k.npz"
SEED = 0
COUNTS = {"train": 6000, "t10k": 2000}
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes: magic (0, 0, 8, rank), big-endian sizes, data."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def balanced_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Ascending rows of a seeded choice of `count` images, the same number of each class."""
    # Raw Philox output, because numpy promises that this stream never changes (of `shuffle` it does not).
    rank = np.random.Philox(np.random.SeedSequence(seed)).random_raw(len(labels))
    each = count // len(CLASSES)
    rows = [np.flatnonzero(labels == c) for c in range(len(CLASSES))]
    return np.sort(np.concatenate([r[np.argsort(rank[r], kind="stable")[:each]] for r in rows]))


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Like `numpy.savez_compressed`, with dates, permissions and compression level fixed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            data = io.BytesIO()
            np.lib.format.write_array(data, array, allow_pickle=False)
            archive.writestr(member, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(source: Path = SOURCE, target: Path = TARGET) -> None:
    arrays = {}
    for seed, (part, count) in enumerate(COUNTS.items(), SEED):
        labels = read_idx(source / f"{part}-labels-idx1-ubyte.gz")
        rows = balanced_rows(labels, count, seed)
        name = "train" if part == "train" else "test"
        arrays[f"{name}_images"] = read_idx(source / f"{part}-images-idx3-ubyte.gz")[rows]
        arrays[f"{name}_labels"] = labels[rows]
    arrays["classes"] = np.array(CLASSES)
    write_npz(target, arrays)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
