"""Sets of two images for training and one for judging, their masks as other people write them; short trainings on
them by the command. Shared by the tests of masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import shapes
from asking import Answer, ask
from pocketformer.dense.segmentation.evaluation import prepared
from pocketformer.pipelines.segment_folders import load_segmenter
from pocketformer.training import checkpoint


def write(folder: Path, draw: Callable[[np.ndarray, int], Image.Image], ending: str = ".png", **save) -> Path:
    """The scenes of `shapes`, their masks by `draw(labels uint8 (H, W) from 0 to 3, number of the scene)`."""
    shapes.write(folder, {"train": 2, "val": 1}, names=False)
    for path in sorted(folder.glob("*annot/*.png")):
        mask = draw(labels(path), int(path.stem))
        path.unlink()
        mask.save(path.with_suffix(ending), **save)
    return folder


def labels(path: Path) -> np.ndarray:
    found = np.array(Image.open(path))
    found[found == shapes.VOID] = 0
    return found


def train(folder: Path, out: Path, *more: object) -> Answer:
    """An epoch of one step, small crops."""
    described = folder.parent / "tiny.json"
    shapes.architecture().save(described)
    given = ["--architecture", described, "--data", folder, "--out", out, "--preset", "small", "--epochs", 1]
    given += ["--size", 32, 40, "--batch-size", 2, "--set", "warmup_steps=0", "--workers", 0, "--json"]
    return ask("segment", "train", *given, *more)


def balance(run: Path, image: Path) -> None:
    """Sets the biases of the last layer so that no class is taken everywhere."""
    trained = load_segmenter(run)
    with Image.open(image) as opened, torch.no_grad():
        logits = trained.model(prepared(opened.convert("RGB"), trained.size, trained.normalisation, 32))
        trained.model.head.classifier.bias -= logits[0].flatten(1).median(1).values
    checkpoint.save_tensors(run / "model.safetensors", trained.model)


def notes(answer: Answer) -> str:
    return "\n".join(line for line in answer.lines if line.startswith("note: "))
