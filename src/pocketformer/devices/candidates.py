"""What a profile times, as model files: chains of fused blocks, whole networks, MobileNetV2.

Weights are random: what a network costs does not depend on them, as long as no values are denormal.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from pocketformer.architecture import Architecture
from pocketformer.architecture.blocks import BlockValue, Grid, Head
from pocketformer.deploy import FusedHead, fuse, fuse_block
from pocketformer.devices.plan import UNIT, Plan
from pocketformer.models import Network, create_model, layers
from pocketformer.models.stage import build_block


def write_candidate(format: ModuleType, plan: Plan, name: str, path: Path, batch: int = 1) -> None:
    """The candidate of that name, with random weights, in that format."""
    if name == UNIT:
        write_unit(format, plan.num_classes, plan.space.resolution, path, batch)
    elif name in plan.chains:
        write_chain(format, plan.chains[name].blocks, path, batch)
    else:
        write_network(format, plan.whole[name], plan.num_classes, plan.space.resolution, path, batch)


def write_chain(format: ModuleType, blocks: Sequence[BlockValue], path: Path, batch: int = 1) -> None:
    """A row of fused blocks, each with weights of its own, in that format."""
    first = blocks[0]
    chain = nn.Sequential(*map(fused, blocks)).eval()
    format.write_quick(chain, torch.randn(batch, first.inputs, *first.grid), path)


def fused(block: BlockValue) -> nn.Module:
    """The deployed form of a block on its own."""
    if isinstance(block, Head):
        norm = nn.LayerNorm(block.width) if block.norm == "ln" else layers.norm(block.norm, block.width)
        return FusedHead(norm, [nn.Linear(block.width, block.num_classes)])
    return fuse_block(build_block(block, layer_scale=1.0), block.grid)


def write_network(
    format: ModuleType,
    architecture: Architecture,
    num_classes: int,
    resolution: Grid,
    path: Path,
    batch: int = 1,
) -> Network:
    """The deployed graph of an untrained network in that format; returns the network."""
    model = untrained(architecture, num_classes, resolution)
    format.write_quick(fuse(model), torch.randn(batch, 3, *resolution), path)
    return model


def untrained(architecture: Architecture, num_classes: int, resolution: Grid) -> Network:
    """The network whose deployed graph is timed."""
    return create_model(architecture, num_classes, resolution, distilled=False, layer_scale=1.0)


def write_unit(format: ModuleType, num_classes: int, resolution: Grid, path: Path, batch: int = 1) -> None:
    """MobileNetV2 x1.0, the unit of latency (contract 6.8), exported the same way."""
    import timm

    model = timm.create_model("mobilenetv2_100", num_classes=num_classes).eval()
    format.write_quick(model, torch.randn(batch, 3, *resolution), path)
