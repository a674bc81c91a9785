"""What each block of EfficientFormerV2 computes, written once over layers given as callables.

The static blocks (`models.efficientformerv2`) pass their own layers; the supernet's blocks pass the same layers at
a switch. So both compute the same thing by construction. Shapes: x is (B, C, H, W) unless said otherwise; a layer
that the design leaves out is None.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx

Layer = Callable[[torch.Tensor], torch.Tensor]
Bias = Callable[[torch.Size], torch.Tensor]  # of a grid: (heads, queries, keys)


def stem(x: torch.Tensor, conv1: Layer, conv2: Layer, act: Layer) -> torch.Tensor:
    """Eq. 3: image (B, in_chans, H, W) to (B, C_1, H/4, W/4) at the published strides."""
    return act(conv2(act(conv1(x))))


def ffn(
    x: torch.Tensor, fc1: Layer, mid: Layer, fc2: Layer, scale: torch.Tensor, act: Layer, drop_path: Layer
) -> torch.Tensor:
    """Eq. 4: S * FFN(x) + x, the unified FFN of Sec. 3.1 (`mid` is the depthwise convolution)."""
    return x + drop_path(scale * fc2(act(mid(act(fc1(x))))))


def attention(
    x: torch.Tensor,
    stride_conv: Layer | None,
    q: Layer,
    k: Layer,
    v: Layer,
    v_local: Layer | None,
    talking_heads: tuple[Layer, Layer] | None,
    bias: Bias | None,
    proj: Layer,
    scale: torch.Tensor,
    act: Layer,
    drop_path: Layer,
    heads: int,
) -> torch.Tensor:
    """Eq. 5 and 6: S * MHSA(x) + x.

    Stride attention (Sec. 3.4) runs at the grid of `stride_conv` and is interpolated back to the grid of x
    before activation and projection.
    """
    y = x if stride_conv is None else stride_conv(x)
    grid, values = y.shape[2:], v(y)
    weights = attention_weights(q(y), k(y), heads, None if bias is None else bias(grid), talking_heads)
    y = join_heads(weights @ split_heads(values, heads).transpose(-2, -1), grid)
    if v_local is not None:
        y = y + v_local(values)
    if stride_conv is not None:
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x + drop_path(scale * proj(act(y)))


def downsampled_attention(
    x: torch.Tensor,
    stride_conv: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    v_local: Layer | None,
    talking_heads: tuple[Layer, Layer] | None,
    bias: Bias | None,
    proj: Layer,
    scale: torch.Tensor,
    act: Layer,
    drop_path: Layer,
    heads: int,
) -> torch.Tensor:
    """Eq. 1: keys and values at the grid of `stride_conv`, queries and output at the full one."""
    y, grid = stride_conv(x), x.shape[2:]
    values = v(y)
    weights = attention_weights(q(x), k(y), heads, None if bias is None else bias(grid), talking_heads)
    out = join_heads(weights @ split_heads(values, heads).transpose(-2, -1), grid)
    if v_local is not None:
        out = out + F.interpolate(v_local(values), size=grid, mode="bilinear", align_corners=False)
    return x + drop_path(scale * proj(act(out)))


def attention_downsampling(
    x: torch.Tensor,
    conv: Layer | None,
    q_local: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    v_local: Layer | None,
    bias: Bias | None,
    proj: Layer,
    act: Layer,
    stride: int,
    heads: int,
) -> torch.Tensor:
    """Eq. 2: attention with subsampled queries; with `conv` on two paths (Sec. 3.5), added.

    The "pooling" of the query has kernel 1: it is plain subsampling (pitfall 9). No talking heads here.
    """
    queries, keys, values = q(q_local(x) + x[..., ::stride, ::stride]), k(x), v(x)
    weights = attention_weights(queries, keys, heads, None if bias is None else bias(x.shape[2:]), None)
    y = join_heads(weights @ split_heads(values, heads).transpose(-2, -1), queries.shape[2:])
    if v_local is not None:
        y = y + v_local(values)
    y = proj(act(y))
    return y if conv is None else conv(x) + y


def attention_weights(
    queries: torch.Tensor,
    keys: torch.Tensor,
    heads: int,
    bias: torch.Tensor | None,
    talking_heads: tuple[Layer, Layer] | None,
) -> torch.Tensor:
    """(B, heads, M, N) of queries and keys (B, heads * d, ...): softmax(q.k / sqrt(d) + bias), between the two
    talking heads (Sec. 3.3) if there are any."""
    queries, keys = split_heads(queries, heads), split_heads(keys, heads)
    scores = queries.transpose(-2, -1) @ keys * queries.shape[2] ** -0.5
    if bias is not None:
        scores = scores + bias
    if talking_heads is None:
        return scores.softmax(dim=-1)
    before, after = talking_heads
    return after(before(scores).softmax(dim=-1))


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads * d, H, W) to (B, heads, d, H * W); channels are head-major."""
    return x.flatten(2).unflatten(1, (heads, -1))


@fx.wrap  # a symbolic trace cannot look into a grid
def join_heads(x: torch.Tensor, grid: torch.Size | tuple[int, int]) -> torch.Tensor:
    """(B, heads, N, d) to (B, heads * d, H, W)."""
    return x.transpose(-2, -1).flatten(1, 2).unflatten(2, tuple(grid))
