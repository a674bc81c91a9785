"""Networks of timm as they are deployed: their inference form, with their own activations or ReLU, and its costs."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import timm
import timm.layers
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pocketformer.architecture.design import Grid

# Activations between layers. Gates (sigmoid, hard sigmoid) and softmax are none: without them it is another network.
_NAMES = ("GELU", "GELUTanh", "QuickGELU", "SiLU", "Swish", "Hardswish", "HardSwish", "Mish", "HardMish", "ReLU6")
_NAMES += ("ELU", "LeakyReLU", "PReLU")
_ACTIVATIONS = tuple(vars(place)[name] for place in (nn, timm.layers) for name in _NAMES if name in vars(place))
_OPERATORS = {"gelu", "silu", "hardswish", "mish", "elu", "leaky_relu", "hardtanh", "prelu"}


@dataclass(frozen=True)
class Costs:
    """Trainable numbers, multiply-adds for one image, and the activations that are not ReLU."""

    parameters: int
    macs: int
    activations: tuple[str, ...]


def inference_form(name: str, num_classes: int = 1000, relu: bool = False) -> nn.Module:
    """An untrained network of timm in evaluation mode, with what it fuses or re-parameterises itself done.

    That is where timm offers it (RepViT, FastViT, MobileOne, LeViT's norms, …); a runtime folds plain BatchNorms.
    With `relu`, all activation modules are ReLU, as in V2's Pixel 6 column (V2 Appendix); those called as functions
    stay (`costs` names them).
    """
    model = timm.create_model(name, num_classes=num_classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine and not module.weight.any():
            nn.init.ones_(module.weight)  # of a branch that starts at zero; folded, a compiler might leave it out
    model = reparameterize_model(model, inplace=True)
    if relu:
        _to_relu(model)
    return model.eval()


def write_peer(
    format: ModuleType, name: str, num_classes: int, resolution: Grid, path: Path, batch: int = 1, relu: bool = False
) -> Costs:
    """Writes a network of timm in that format for images of `resolution` (height, width) px; returns its costs."""
    model = inference_form(name, num_classes, relu)
    found = costs(model, resolution)
    format.write_quick(model, torch.randn(batch, 3, *resolution), path)
    return found


def costs(model: nn.Module, resolution: Grid) -> Costs:
    """Counted on one image of (height, width) px: multiply-adds of convolutions, linears and attention products."""
    seen = _Seen()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, seen:
        device = next(model.parameters()).device
        model(torch.zeros(1, 3, *resolution, device=device))
    parameters = sum(p.numel() for p in model.parameters())
    return Costs(parameters, counter.get_total_flops() // 2, tuple(sorted(seen.found)))


def _to_relu(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _ACTIVATIONS):
            setattr(module, name, nn.ReLU())
        else:
            _to_relu(child)


class _Seen(TorchDispatchMode):
    """Which activations a forward pass executes, however they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        if name in _OPERATORS:
            self.found.add("relu6" if name == "hardtanh" else name)
        return func(*args, **(kwargs or {}))
