"""Small images of three brightnesses, a tiny space and its made-up latency table. Shared by the tests of commands."""

import numpy as np
from PIL import Image

from pocketformer import SearchSpace
from pocketformer.devices import Entry, LatencyTable, Reference, space_blocks

TINY = """
name: tiny
design: {resolution: 16, stem_strides: [2, 1], stage_strides: [2, 1, 2], attention_strides: [1, 1, 1, 1],
  activation: [relu, relu, gelu, gelu], heads: 1, key_dim: 4, value_dim: 4, downsampling_heads: 1,
  downsampling_key_dim: 4, downsampling_value_dim: 4}
expansions: [1, 2]
stages:
  - {depth: 1, widths: [4]}
  - {depth: 1, widths: [4, 6]}
  - {depth: 1, widths: [6, 8], attention: true}
  - {depth: 1, widths: [8], attention: true}
"""
CLASSES = ("dark", "grey", "light")


def write_images(folder, count=48, dark=60, step=70):
    """Class by class a step brighter than `dark`."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / CLASSES[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(dark + step * (i % 3), 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02}.png")


def open_shop(folder):
    """A folder with data/, space.yaml and table.json, whose latencies are multiply-accumulates."""
    write_images(folder / "data")
    (folder / "space.yaml").write_text(TINY)
    space = SearchSpace.load(folder / "space.yaml")
    entries = {key: Entry(1e-6 * block.macs()) for key, block in space_blocks(space, 3).items()}
    table = LatencyTable(entries, 0.01, 1.0, Reference("r", 1.0), space.name, 3, space.resolution)
    table.save(folder / "table.json")
    return folder
