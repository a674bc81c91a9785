"""The blocks of EfficientFormerV2 (V2 Sec. 3), each built from its value in `architecture.efficientformerv2`."""

import torch
from torch import nn

from pocketformer.architecture import blocks as values
from pocketformer.models import compute
from pocketformer.models.bias import AttentionBias
from pocketformer.models.layers import ConvNorm, LayerScale, activation, drop_path, init_mlp


class FFN(nn.Module):
    """Unified FFN (Sec. 3.1, eq. 4)."""

    def __init__(self, value: values.FFNBlock, layer_scale: float = 1e-5, drop: float = 0.0):
        super().__init__()
        self.fc1 = ConvNorm(value.width, value.hidden, norm_name=value.norm)
        self.mid = ConvNorm(value.hidden, value.hidden, 3, groups=value.hidden, norm_name=value.norm)
        self.fc2 = ConvNorm(value.hidden, value.width, norm_name=value.norm)
        self.scale = LayerScale(value.width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = drop_path(drop)
        init_mlp(self.fc1.conv, self.fc2.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale.at(x.shape[1])
        return compute.ffn(x, self.fc1, self.mid, self.fc2, scale, self.act, self.drop_path)


class Attention(nn.Module):
    """MHSA (Sec. 3.3, eq. 5 and 6), stride attention (Sec. 3.4) or attention with downsampled keys (eq. 1)."""

    def __init__(self, value: values.AttentionBlock, layer_scale: float = 1e-5, drop: float = 0.0):
        super().__init__()
        width, keys, vals, norm, stride = value.width, value.keys, value.values, value.norm, value.stride
        self.heads = value.heads
        self.full_queries = value.full_queries
        self.stride_conv = ConvNorm(width, width, 3, stride, width, norm) if stride > 1 else None
        self.q = ConvNorm(width, keys, norm_name=norm)
        self.k = ConvNorm(width, keys, norm_name=norm)
        self.v = ConvNorm(width, vals, norm_name=norm)
        self.v_local = ConvNorm(vals, vals, 3, groups=vals, norm_name=norm) if value.local_value else None
        self.talking_head1 = nn.Conv2d(self.heads, self.heads, 1) if value.talking_heads else None
        self.talking_head2 = nn.Conv2d(self.heads, self.heads, 1) if value.talking_heads else None
        self.bias = attention_bias(value)
        self.proj = ConvNorm(vals, width, norm_name=norm)
        self.scale = LayerScale(width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = drop_path(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = compute.downsampled_attention if self.full_queries else compute.attention
        return attention(
            x,
            self.stride_conv,
            self.q,
            self.k,
            self.v,
            self.v_local,
            None if self.talking_head1 is None else (self.talking_head1, self.talking_head2),
            self.bias,
            self.proj,
            self.scale.at(x.shape[1]),
            self.act,
            self.drop_path,
            self.heads,
        )


class AttentionDownsampling(nn.Module):
    """Attention downsampling (eq. 2), with `dual_path` beside a strided convolution (Sec. 3.5)."""

    def __init__(self, value: values.AttentionDownsampling):
        super().__init__()
        inputs, keys, vals, stride, norm = value.in_width, value.keys, value.values, value.stride, value.norm
        self.heads, self.stride = value.heads, stride
        self.conv = ConvNorm(inputs, value.width, 3, stride, norm_name=norm) if value.dual_path else None
        self.q_local = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
        self.q = ConvNorm(inputs, keys, norm_name=norm)
        self.k = ConvNorm(inputs, keys, norm_name=norm)
        self.v = ConvNorm(inputs, vals, norm_name=norm)
        self.v_local = ConvNorm(vals, vals, 3, stride, vals, norm) if value.local_value else None
        self.bias = AttentionBias(value.heads, value.grid, query_stride=stride) if value.bias else None
        self.proj = ConvNorm(vals, value.width, norm_name=norm)
        self.act = activation(value.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return compute.attention_downsampling(
            x,
            self.conv,
            self.q_local,
            self.q,
            self.k,
            self.v,
            self.v_local,
            self.bias,
            self.proj,
            self.act,
            self.stride,
            self.heads,
        )


def attention_bias(value: values.AttentionBlock) -> AttentionBias | None:
    """The table of an attention block, over the grid of its queries."""
    if not value.bias:
        return None
    return AttentionBias(value.heads, value.query_grid, key_stride=value.stride if value.full_queries else 1)
