"""EfficientFormerV2 of any `Architecture` (paper Sec. 3 and 4.1)."""

import torch
from timm.layers import trunc_normal_
from torch import nn

from pocketformer.architecture import Architecture
from pocketformer.architecture.blocks import Grid
from pocketformer.errors import UserError
from pocketformer.models import compute
from pocketformer.models.blocks import build_block


def drop_path_rates(kinds: list[str], rate: float) -> list[float]:
    """One rate a block, linear from 0 to `rate` over the published blocks: an attention block has the rate of
    the FFN behind it, with which it forms one published block."""
    index = [kinds[:i].count("ffn") for i in range(len(kinds))]
    last = max(kinds.count("ffn") - 1, 1)
    return [rate * min(i, last) / last for i in index]


class EfficientFormerV2(nn.Module):
    """A static network. In training it returns the mean of its two heads' logits, or with
    `set_distilled_training(True)` the pair (head, distillation head), as timm's models do."""

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        resolution: int | Grid | None = None,
        distilled: bool = True,
        in_chans: int = 3,
        drop_path: float = 0.0,
        layer_scale: float = 1e-5,
    ):
        super().__init__()
        values = architecture.blocks(resolution, num_classes, distilled, in_chans)
        self.architecture = architecture
        self.resolution = values[0].grid
        self.num_classes, self.in_chans = num_classes, in_chans
        self.distilled = distilled
        self.distilled_training = False
        self.num_features = architecture.stages[-1].width
        self.pretrained_cfg = {"mean": (0.5,) * in_chans, "std": (0.5,) * in_chans}  # of our data layer

        kinds = [str(block).rstrip("0123456789.") for stage in architecture.stages for block in stage.blocks]
        rates = iter(drop_path_rates(kinds, drop_path))
        rest = iter(values)
        self.stem = build_block(next(rest))
        self.stages = nn.ModuleList()
        for j, stage in enumerate(architecture.stages):
            module = nn.Module()
            module.downsample = build_block(next(rest)) if j > 0 else nn.Identity()
            module.blocks = nn.ModuleList(build_block(next(rest), layer_scale, next(rates)) for _ in stage.blocks)
            self.stages.append(module)
        self.norm = nn.BatchNorm2d(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)
        self.head_dist = nn.Linear(self.num_features, num_classes) if distilled else None
        for head in filter(None, (self.head, self.head_dist)):
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return (head, distillation head) logits in training; needs `distilled=True`."""
        if enable and self.head_dist is None:
            raise UserError("distilled training needs a model built with distilled=True")
        self.distilled_training = enable

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) to the last stage's map (B, C, h, w), before the final norm."""
        if tuple(x.shape[1:]) != (self.in_chans, *self.resolution):
            want = f"(B, {self.in_chans}, {self.resolution[0]}, {self.resolution[1]})"
            raise UserError(f"this model takes images of shape {want}, not {tuple(x.shape)}")
        x = self.stem(x)
        for stage in self.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = block(x)
        return x

    def forward_head(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = compute.pool(x, self.norm)
        logits = self.head(x)
        if self.head_dist is None:
            return logits
        distilled = self.head_dist(x)
        if self.training and self.distilled_training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self.forward_head(self.forward_features(x))


def create_model(
    architecture: Architecture | str,
    num_classes: int = 1000,
    resolution: int | Grid | None = None,
    distilled: bool = True,
    in_chans: int = 3,
    drop_path: float = 0.0,
    layer_scale: float = 1e-5,
) -> EfficientFormerV2:
    """A freshly initialised network of an architecture or a published name.

    `resolution` (int or (height, width), px) is the architecture's own unless given; `drop_path` the rate of the
    last block; `layer_scale` the initial value (1e-5 as published; short trainings want more).
    """
    if isinstance(architecture, str):
        architecture = Architecture.named(architecture)
    return EfficientFormerV2(architecture, num_classes, resolution, distilled, in_chans, drop_path, layer_scale)
