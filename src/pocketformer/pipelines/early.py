"""Before hours of work for a runtime: is one network of the space written for it as it should be?"""

import tempfile
from pathlib import Path

import torch

from pocketformer.architecture import SearchSpace
from pocketformer.deploy import SUFFIXES, export
from pocketformer.models import create_model
from pocketformer.progress import stage

IMAGES = 8


def verify_export(
    space: SearchSpace,
    format: str,
    num_classes: int,
    images: torch.Tensor | None = None,
    precision: str = "float32",
) -> None:
    """Exports the smallest member with random weights, as a trained one would be, and throws the file away.

    `images`: (N, 3, H, W), or random ones. Raises `WorkError` in one line, as `export` does. Random numbers of the
    caller stay as they are.
    """
    what = f"verify the export of the smallest network to {format}"
    with stage(what) as progress, tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = create_model(space.smallest, num_classes, distilled=False, layer_scale=1.0)
            images = torch.randn(IMAGES, 3, *space.resolution) if images is None else images
        found = export(model, Path(folder) / f"model{SUFFIXES[format]}", images, format, precision=precision).verified
        text = "written; no runtime here can run it"
        if found:
            text = f"logits differ by at most {found.max_difference / found.logits_std:.0e} of their standard deviation"
        progress.update(1, text)
