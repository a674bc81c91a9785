"""What each block computes, written once over layers given as callables.

The static blocks (`models.blocks`) pass their own layers; the supernet's blocks pass the same layers at a switch.
So both compute the same thing by construction. Shapes: x is (B, C, H, W) unless said otherwise.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

Layer = Callable[[torch.Tensor], torch.Tensor]


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
    v_local: Layer,
    talking_head1: Layer,
    talking_head2: Layer,
    bias: torch.Tensor,
    proj: Layer,
    scale: torch.Tensor,
    act: Layer,
    drop_path: Layer,
) -> torch.Tensor:
    """Eq. 5 and 6: S * MHSA(x) + x. `bias` is (heads, N, N), already gathered.

    Stride attention (Sec. 3.4) runs at the grid of `stride_conv` and is interpolated back to the grid of x
    before activation and projection.
    """
    y = x if stride_conv is None else stride_conv(x)
    heads, grid = bias.shape[0], y.shape[2:]
    queries, keys, values = q(y), k(y), v(y)
    queries, keys = split_heads(queries, heads), split_heads(keys, heads)
    scores = queries.transpose(-2, -1) @ keys * queries.shape[2] ** -0.5 + bias  # (B, heads, N, N)
    weights = talking_head2(talking_head1(scores).softmax(dim=-1))
    y = join_heads(weights @ split_heads(values, heads).transpose(-2, -1), grid) + v_local(values)
    if stride_conv is not None:
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x + drop_path(scale * proj(act(y)))


def dual_path_downsampling(
    x: torch.Tensor,
    conv: Layer,
    q_local: Layer,
    q: Layer,
    k: Layer,
    v: Layer,
    v_local: Layer,
    bias: torch.Tensor,
    proj: Layer,
    act: Layer,
    stride: int,
) -> torch.Tensor:
    """Eq. 2 and Sec. 3.5: convolution + attention with subsampled queries; `bias` is (heads, M, N).

    The "pooling" of the query has kernel 1: it is plain subsampling (pitfall 9). No talking heads here.
    """
    heads = bias.shape[0]
    queries, keys, values = q(q_local(x) + x[..., ::stride, ::stride]), k(x), v(x)
    grid = queries.shape[2:]
    queries, keys = split_heads(queries, heads), split_heads(keys, heads)
    weights = (queries.transpose(-2, -1) @ keys * queries.shape[2] ** -0.5 + bias).softmax(dim=-1)
    y = join_heads(weights @ split_heads(values, heads).transpose(-2, -1), grid) + v_local(values)
    return conv(x) + proj(act(y))


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, heads * d, H, W) to (B, heads, d, H * W); channels are head-major."""
    return x.flatten(2).unflatten(1, (heads, -1))


def join_heads(x: torch.Tensor, grid: torch.Size | tuple[int, int]) -> torch.Tensor:
    """(B, heads, N, d) to (B, heads * d, H, W)."""
    return x.transpose(-2, -1).flatten(1, 2).unflatten(2, tuple(grid))


def pool(x: torch.Tensor, norm: Layer) -> torch.Tensor:
    """Final norm on the map, then the mean over positions: (B, C)."""
    return norm(x).mean((2, 3))


def offset_index(grid: tuple[int, int], stride: int = 1) -> torch.Tensor:
    """Row of the bias table for each (query, key) pair: int64 (M, N), |dy| * W + |dx| on the key grid.

    With `stride` > 1 the queries are the strided positions (dual-path downsampling).
    """
    height, width = grid
    keys = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)
    queries = keys[::stride, ::stride].reshape(-1, 1, 2)
    offset = (queries - keys.reshape(1, -1, 2)).abs()
    return offset[..., 0] * width + offset[..., 1]
