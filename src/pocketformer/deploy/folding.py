"""Folding: constant layers go into the convolution or linear in front of them, computed in float64."""

import torch
from torch import nn

from pocketformer.errors import UserError
from pocketformer.models.layers import ConvNorm


@torch.no_grad()
def folded(
    conv: nn.Conv2d, norm: nn.Module | None = None, scale: torch.Tensor | float = 1, centre: float = 0
) -> nn.Conv2d:
    """A new convolution that computes scale * norm(conv(x)).

    `scale` is a number or one number per output channel; `centre` is added to the centre tap of the kernel
    first: for a depthwise kernel with `centre` 1 that adds the (subsampled) input itself.
    """
    weight, bias = conv.weight.double().clone(), conv.bias.double()
    weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2] += centre
    if norm is not None:
        factor, shift = affine(norm)
        weight = weight * factor[:, None, None, None]
        bias = bias * factor + shift
    scale = torch.as_tensor(scale, dtype=torch.float64, device=weight.device).reshape(-1)
    result = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    ).to(conv.weight)
    result.weight.copy_(weight * scale[:, None, None, None])
    result.bias.copy_(bias * scale)
    return result.requires_grad_(False)


def affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(factor, shift) of a BatchNorm in evaluation mode; also of a synchronised or a frozen one."""
    if getattr(norm, "running_var", None) is None:
        raise UserError(f"cannot fold a {type(norm).__name__}: it keeps no statistics")
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return factor, norm.bias.double() - norm.running_mean.double() * factor


@torch.no_grad()
def fold(layer: ConvNorm, scale: torch.Tensor | float = 1.0) -> nn.Module:
    """A convolution with its BatchNorm and a scale as one convolution. A GroupNorm stays, and takes the scale."""
    if not isinstance(layer.norm, nn.GroupNorm):
        return folded(layer.conv, layer.norm, scale)
    norm = nn.GroupNorm(layer.norm.num_groups, layer.norm.num_channels, layer.norm.eps).to(layer.norm.weight)
    norm.weight.copy_(layer.norm.weight.double() * scale)
    norm.bias.copy_(layer.norm.bias.double() * scale)
    return nn.Sequential(folded(layer.conv), norm).requires_grad_(False)


@torch.no_grad()
def folded_linear(
    linear: nn.Linear,
    norm: nn.LayerNorm | None = None,
    scale: torch.Tensor | float = 1,
    rows: torch.Tensor | None = None,
) -> nn.Linear:
    """A new linear that computes scale * linear(w * x + b), w and b those of a norm in front of it, with its
    outputs in the order of `rows`."""
    weight, bias = linear.weight.double(), linear.bias.double()
    if norm is not None:
        weight, bias = weight * norm.weight.double(), bias + weight @ norm.bias.double()
    scale = torch.as_tensor(scale, dtype=torch.float64, device=weight.device).reshape(-1)
    weight, bias = weight * scale[:, None], bias * scale
    if rows is not None:
        weight, bias = weight[rows], bias[rows]
    result = nn.Linear(linear.in_features, linear.out_features).to(linear.weight)
    result.weight.copy_(weight)
    result.bias.copy_(bias)
    return result.requires_grad_(False)


def plain_norm(norm: nn.LayerNorm | nn.GroupNorm) -> nn.Module:
    """The norm without its weight and bias, which the layer behind it has taken."""
    if isinstance(norm, nn.LayerNorm):
        return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    return nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps, affine=False)


def activation(module: nn.Module) -> nn.Module:
    return type(module)()  # a new one: a fused network shares no module with its source
