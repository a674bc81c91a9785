"""A space of few operators, images of three brightnesses, and a network trained on them. Shared by tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from asking import ask
from pocketformer.architecture import SearchSpace
from workshop import write_table

CLASSES = ("dark", "grey", "light")
# Converters take a tenth of a second for each operator: every kind of part that talks across positions, once.
SPACE = """\
name: few
design: {resolution: 16, stem_strides: [2, 2], stage_strides: [1, 1], attention_strides: [1, 1, 1],
  downsampling: [conv, conv], heads: 2, key_dim: 4, value_dim: 4}
expansions: [1]
stages:
  - {depth: 1, widths: [8, 16]}
  - {depth: 1, widths: [16]}
  - {depth: 1, widths: [24], attention: true}
"""


def write_images(folder: Path) -> Path:
    """80 a class, and 4 to test on: the search split is 120, in the order of the classes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(50 + 80 * label, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i:02}.png")
    return folder


def open_place(folder: Path) -> Path:
    """data/, space.yaml, shape.json, table.json and a trained network in run/."""
    (folder / "space.yaml").write_text(SPACE)
    space = SearchSpace.load(folder / "space.yaml")
    space.whole.architecture.save(folder / "shape.json")
    write_table(folder / "table.json", space, 3)
    write_images(folder / "data")
    train = ["train", "--architecture", folder / "shape.json", "--data", folder / "data", "--workers", 0]
    ask(*train, "--epochs", 8, "--batch-size", 16, "--out", folder / "run").succeeds()
    return folder


def classes_in(images) -> list[int]:
    """How many of each class are among normalised images (N, 3, H, W), by their brightness."""
    shade = (images.mean((1, 2, 3)) * 0.5 + 0.5) * 255
    return np.bincount(((shade - 50) / 80).round().int().numpy(), minlength=3).tolist()
