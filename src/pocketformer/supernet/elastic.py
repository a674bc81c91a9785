"""Elastic layers: shared weights sliced to a switch, and norms of each switch's own (paper eq. 8).

A block of the supernet has the same layer names as its static block, so that `shared(step)` can list, under the
static block's names, the slices that a step uses.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pocketformer.architecture import Step
from pocketformer.architecture import blocks as values
from pocketformer.models import compute, ends
from pocketformer.models.bias import AttentionBias
from pocketformer.models.efficientformerv2 import attention_bias
from pocketformer.models.layers import LayerScale, activation, drop_path, init_mlp

Layer = Callable[[torch.Tensor], torch.Tensor]


class ElasticConv(nn.Conv2d):
    """w[:c] of eq. 8: the first `outputs` filters, on as many input channels as x has."""

    def slice(self, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        depthwise = self.groups > 1
        if outputs == self.out_channels and (depthwise or inputs == self.in_channels):
            return self.weight, self.bias  # the gradient of a slice is written into zeros of the whole
        weight = self.weight[:inputs] if depthwise else self.weight[:outputs, :inputs]
        return weight, self.bias[:outputs]

    def forward(self, x: torch.Tensor, outputs: int) -> torch.Tensor:
        inputs = x.shape[1]
        weight, bias = self.slice(inputs, outputs)
        groups = inputs if self.groups > 1 else 1
        return F.conv2d(x, weight, bias, self.stride, self.padding, groups=groups)


class SwitchNorm(nn.BatchNorm2d):
    """The norm of one switch (eq. 8). With `calibration` = n > 0, in eval mode, its statistics are those of the
    first n images of the batch: a switch's running statistics mix all the subnets it was trained in, and may
    be far from those of the subnet at hand."""

    calibration = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.calibration or self.training:
            return super().forward(x)
        mean, variance = x.new_zeros(2, x.shape[1])
        # Momentum 1 leaves the images' own statistics; `var_mean` takes eight times as long.
        F.batch_norm(x[: self.calibration], mean, variance, training=True, momentum=1.0, eps=self.eps)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class ElasticConvNorm(nn.Module):
    """An elastic convolution and one BatchNorm for each switch: {switch: channels}."""

    def __init__(
        self, inputs: int, outputs: int, norms: dict[str, int], kernel: int = 1, stride: int = 1, groups: int = 1
    ):
        super().__init__()
        self.conv = ElasticConv(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.norms = nn.ModuleDict({switch: SwitchNorm(channels) for switch, channels in norms.items()})

    def at(self, switch: str) -> Layer:
        norm = self.norms[switch]
        return lambda x: norm(self.conv(x, norm.num_features))


def _at(layer: ElasticConvNorm | None, switch: str) -> Layer | None:
    return None if layer is None else layer.at(switch)


def _widths(widths: tuple[int, ...]) -> dict[str, int]:
    return {str(width): width for width in widths}


def switch_of(step: Step) -> str:
    """The switch whose norms a step uses (contract 6.5)."""
    match step.kind:
        case "ffn":
            return f"{step.width}x{step.expansion:g}".replace(".", "_")
        case "downsampling":
            return f"{step.in_width}-{step.width}"
        case _:
            return str(step.width)


class ElasticStem(ends.Stem):
    def __init__(self, value: values.Stem, widths: tuple[int, ...]):
        super().__init__(value)
        first, second = value.strides
        mids = {str(width): width // 2 for width in widths}
        self.conv1 = ElasticConvNorm(value.in_chans, value.mid_width, mids, 3, first)
        self.conv2 = ElasticConvNorm(value.mid_width, value.width, _widths(widths), 3, second)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        switch = switch_of(step)
        return compute.stem(x, self.conv1.at(switch), self.conv2.at(switch), self.act)


class ElasticFFN(nn.Module):
    def __init__(
        self,
        value: values.FFNBlock,
        widths: tuple[int, ...],
        expansions: tuple[float, ...],
        layer_scale: float,
        drop: float,
    ):
        super().__init__()
        outer, inner = {}, {}
        for width in widths:
            for expansion in expansions:
                switch = switch_of(Step("ffn", 0, 0, width, width, expansion))
                outer[switch], inner[switch] = width, int(width * expansion)
        self.fc1 = ElasticConvNorm(value.width, value.hidden, inner)
        self.mid = ElasticConvNorm(value.hidden, value.hidden, inner, 3, groups=value.hidden)
        self.fc2 = ElasticConvNorm(value.hidden, value.width, outer)
        self.scale = LayerScale(value.width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = drop_path(drop)
        init_mlp(self.fc1.conv, self.fc2.conv)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        switch = switch_of(step)
        layers = self.fc1.at(switch), self.mid.at(switch), self.fc2.at(switch)
        return compute.ffn(x, *layers, self.scale.at(step.width), self.act, self.drop_path)


class ElasticAttention(nn.Module):
    """Heads and their dimensions are fixed: only the block's input and output width is elastic."""

    def __init__(self, value: values.AttentionBlock, widths: tuple[int, ...], layer_scale: float, drop: float):
        super().__init__()
        width, keys, vals, stride = value.width, value.keys, value.values, value.stride
        outer = _widths(widths)
        to_keys, to_values = dict.fromkeys(outer, keys), dict.fromkeys(outer, vals)
        self.heads = value.heads
        self.full_queries = value.full_queries
        self.stride_conv = ElasticConvNorm(width, width, outer, 3, stride, width) if stride > 1 else None
        self.q = ElasticConvNorm(width, keys, to_keys)
        self.k = ElasticConvNorm(width, keys, to_keys)
        self.v = ElasticConvNorm(width, vals, to_values)
        self.v_local = ElasticConvNorm(vals, vals, to_values, 3, groups=vals) if value.local_value else None
        self.talking_head1 = nn.Conv2d(self.heads, self.heads, 1) if value.talking_heads else None
        self.talking_head2 = nn.Conv2d(self.heads, self.heads, 1) if value.talking_heads else None
        self.bias = attention_bias(value)
        self.proj = ElasticConvNorm(vals, width, outer)
        self.scale = LayerScale(width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = drop_path(drop)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        switch = switch_of(step)
        attention = compute.downsampled_attention if self.full_queries else compute.attention
        return attention(
            x,
            _at(self.stride_conv, switch),
            self.q.at(switch),
            self.k.at(switch),
            self.v.at(switch),
            _at(self.v_local, switch),
            None if self.talking_head1 is None else (self.talking_head1, self.talking_head2),
            self.bias,
            self.proj.at(switch),
            self.scale.at(step.width),
            self.act,
            self.drop_path,
            self.heads,
        )


class ElasticConvDownsampling(nn.Module):
    def __init__(self, value: values.ConvDownsampling, pairs: dict[str, int]):
        super().__init__()
        self.conv = ElasticConvNorm(value.in_width, value.width, pairs, 3, value.stride)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        return self.conv.at(switch_of(step))(x)


class ElasticAttentionDownsampling(nn.Module):
    def __init__(self, value: values.AttentionDownsampling, pairs: dict[str, int]):
        super().__init__()
        inputs, keys, vals, stride = value.in_width, value.keys, value.values, value.stride
        to_keys, to_values = dict.fromkeys(pairs, keys), dict.fromkeys(pairs, vals)
        self.heads, self.stride = value.heads, stride
        self.conv = ElasticConvNorm(inputs, value.width, pairs, 3, stride) if value.dual_path else None
        self.q_local = ElasticConv(inputs, inputs, 3, stride, 1, groups=inputs)
        self.q = ElasticConvNorm(inputs, keys, to_keys)
        self.k = ElasticConvNorm(inputs, keys, to_keys)
        self.v = ElasticConvNorm(inputs, vals, to_values)
        self.v_local = ElasticConvNorm(vals, vals, to_values, 3, stride, vals) if value.local_value else None
        self.bias = AttentionBias(value.heads, value.grid, query_stride=stride) if value.bias else None
        self.proj = ElasticConvNorm(vals, value.width, pairs)
        self.act = activation(value.activation)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        switch = switch_of(step)
        return compute.attention_downsampling(
            x,
            _at(self.conv, switch),
            lambda y: self.q_local(y, step.in_width),
            self.q.at(switch),
            self.k.at(switch),
            self.v.at(switch),
            _at(self.v_local, switch),
            self.bias,
            self.proj.at(switch),
            self.act,
            self.stride,
            self.heads,
        )


def norms_of(block: nn.Module, switch: str) -> list[SwitchNorm]:
    """The norms that an elastic block runs at a switch."""
    return [layer.norms[switch] for layer in block.modules() if isinstance(layer, ElasticConvNorm)]


def shared(block: nn.Module, static: nn.Module, switch: str) -> dict[str, torch.Tensor]:
    """The tensors of an elastic block that a static block of this switch holds: {static name: slice}.

    Slices are views of the shared weights; norms are those of the switch.
    """
    own = block.state_dict(keep_vars=True)
    result = {}
    for name, tensor in static.state_dict().items():
        source = own[name.replace(".norm.", f".norms.{switch}.")]
        result[name] = source[tuple(slice(n) for n in tensor.shape)]
    return result
