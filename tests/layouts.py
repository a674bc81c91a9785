"""Searched shapes under the published designs, and files of their weights. Shared by the tests of checkpoints."""

from pathlib import Path

import timm
import torch

from perturbed import perturb
from pocketformer.architecture import FFN, Architecture, Attention, Stage
from pocketformer.architecture.design import EFFICIENTFORMER
from pocketformer.models import Network, create_model

# Fast to build, and named in both layouts.
V2 = Architecture(
    (
        Stage(8, (FFN(2),)),
        Stage(16, (FFN(1), FFN(3))),
        Stage(24, (FFN(2), Attention(), FFN(4))),
        Stage(32, (FFN(3), Attention(), FFN(2))),
    )
)
V1 = Architecture(
    (Stage(8, (FFN(4),)), Stage(16, (FFN(4),)), Stage(24, (FFN(4),)), Stage(32, (FFN(4), Attention(), FFN(4)))),
    EFFICIENTFORMER,
)


def tiny(architecture: Architecture = V2, classes: int = 5, resolution=64, seed: int = 0, **kwargs) -> Network:
    return perturb(create_model(architecture, classes, resolution, **kwargs), seed).eval()


def images(model: Network, n: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, *model.resolution, generator=torch.Generator().manual_seed(7))


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


# --- backbones


def of_timm(name: str, **arguments) -> torch.nn.Module:
    return timm.create_model("pocket_custom", architecture={"V1": V1, "V2": V2}[name], **arguments).eval()
