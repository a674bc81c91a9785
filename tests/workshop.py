"""Images, a tiny space, its made-up table and what is trained on them. Shared by the tests of the command line."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from asking import ask
from pocketformer.architecture import SearchSpace
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks
from shop import CLASSES

SPACE = """\
name: tiny
design: {resolution: 16, stem_strides: [2, 1], stage_strides: [2, 1, 1], attention_strides: [1, 1, 1, 1],
  heads: 2, key_dim: 4, value_dim: 4, downsampling_heads: 2, downsampling_key_dim: 4, downsampling_value_dim: 4}
expansions: [1, 2]
stages:
  - {depth: 1, widths: [4, 8]}
  - {depth: 1, widths: [8]}
  - {depth: 1, widths: [8, 12], attention: true}
  - {depth: 1, widths: [12, 16], attention: true}
"""


def write_images(folder: Path, count: int, classes=CLASSES, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = (rng.normal(60 + 70 * label, 30, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def write_data(folder: Path) -> Path:
    write_images(folder / "train", 20)
    write_images(folder / "val", 4, seed=1)
    return folder


def write_table(path: Path, space: SearchSpace, classes: int, **changes) -> Path:
    """A table made up from the blocks' multiply-accumulates."""
    entries = {key: Entry(1e-4 + block.macs() / 1e7) for key, block in space_blocks(space, classes).items()}
    largest = sum(entries[b.key()].latency for b in space.largest.blocks(None, classes, distilled=False))
    table = LatencyTable(
        entries, 1e-3, 0.2, Reference("largest", largest + 1e-3), space.name, classes, space.resolution
    )
    values = table.to_dict()
    path.write_text(json.dumps({**values, **changes}))
    return path


@dataclass(frozen=True)
class Workshop:
    """Images, a space, a table, a trained supernet and a trained network that tests read and do not change."""

    path: Path

    def __getattr__(self, name: str) -> Path:
        return self.path / {"space": "tiny.yaml", "table": "table.json", "small": "small.json"}.get(name, name)

    @property
    def files(self) -> dict[str, Path]:
        """What the commands below name."""
        return {name: getattr(self, name) for name in ("data", "space", "table", "supernet", "network", "small")}


def open_workshop(folder: Path) -> Workshop:
    found = Workshop(folder)
    found.space.write_text(SPACE)
    write_data(found.data)
    space = SearchSpace.load(found.space)
    write_table(found.table, space, 3)
    space.smallest.save(found.small)
    common = ["--data", found.data, "--epochs", 1, "--batch-size", 8]
    for command in (
        ["supernet", "--space", found.space, *common, "--out", found.supernet],
        ["train", "--architecture", found.small, *common, "--out", found.network],
        [*fill(EXPORT[:-1], found.files, folder), found.network / "exported" / "model.onnx"],
    ):
        ask(*command).succeeds()
    return found


DESIGN = ["design", "--data", "{data}", "--space", "{space}", "--out", "{new}"]
SEARCH_ON = ["search", "--supernet", "{supernet}", "--out", "{new}", "--latency"]
SEARCH = [*SEARCH_ON, "{table}"]
SEARCH_HALF = [*SEARCH, "--max-latency", "50%"]
TRAIN = ["train", "--architecture", "{small}", "--data", "{data}", "--epochs", "1", "--out", "{new}"]
EXPORT = ["export", "--checkpoint", "{network}", "--data", "{data}", "--out", "{new}.onnx"]


def fill(arguments: list[str], files: dict[str, Path], new: Path) -> list[str]:
    return [argument.format(new=new, **files) for argument in arguments]


class Payload:
    """Pickled code, and the folder that it makes where it is executed."""

    def __reduce__(self):
        return os.mkdir, (str(executed()),)


def executed() -> Path:
    return Path(tempfile.gettempdir()) / f"executed-{os.getpid()}"
