"""The blocks of EfficientFormer (V1 Sec. 4.1), each built from its value in `architecture.efficientformer`.

All take and return maps (B, C, H, W). Those on tokens see a map as (B, H * W, C), which moves no data between them.
"""

import torch
from torch import fx, nn

from pocketformer.architecture import blocks as values
from pocketformer.models.bias import AttentionBias
from pocketformer.models.layers import ConvNorm, LayerScale, activation, drop_path, init_mlp


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


@fx.wrap  # a symbolic trace cannot look into a grid
def to_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))


class Pool(nn.Module):
    """Pool(x) - x, the 3x3 average not counting padding: its residual makes it the Pool(x) of eq. 4 (pitfall 17)."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x) - x


class MetaBlock(nn.Module):
    """MB4D, eq. 4: I = Pool(X); X' = Conv_B(Conv_B,G(I)) + I, each branch scaled (pitfall 17)."""

    def __init__(self, value: values.MetaBlock, layer_scale: float = 1e-5, drop: float = 0.0):
        super().__init__()
        width, hidden = value.width, value.hidden
        match value.mixer:
            case "pool":
                self.mixer = Pool()
            case "dwconv":
                self.mixer = ConvNorm(width, width, 3, groups=width, norm_name=value.norm)
            case _:
                self.mixer = None
        self.mixer_scale = None if self.mixer is None else LayerScale(width, layer_scale)
        self.fc1 = ConvNorm(width, hidden, norm_name=value.norm)
        self.fc2 = ConvNorm(hidden, width, norm_name=value.norm)
        self.scale = LayerScale(width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = drop_path(drop)
        init_mlp(self.fc1.conv, self.fc2.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[1]
        if self.mixer is not None:
            x = x + self.drop_path(self.mixer_scale.at(width) * self.mixer(x))
        return x + self.drop_path(self.scale.at(width) * self.fc2(self.act(self.fc1(x))))


class TokenAttention(nn.Module):
    """The attention of MB3D, eq. 5 and 6: Linear(MHSA(Linear(LN(X)))) + X. One linear makes q, k and v, interleaved
    per head; the scale is that of the key dimension (pitfall 18)."""

    def __init__(self, value: values.TokenAttentionBlock, layer_scale: float = 1e-5, drop: float = 0.0):
        super().__init__()
        self.heads, self.dims = value.heads, (value.key_dim, value.key_dim, value.value_dim)
        outputs = value.heads * value.value_dim
        self.norm = nn.LayerNorm(value.width)
        self.qkv = nn.Linear(value.width, value.heads * sum(self.dims))
        self.bias = AttentionBias(value.heads, value.grid) if value.bias else None
        self.proj = nn.Linear(outputs, value.width)
        self.scale = LayerScale(value.width, layer_scale)
        self.drop_path = drop_path(drop)
        init_mlp(self.qkv, self.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid, tokens = x.shape[2:], to_tokens(x)
        qkv = self.qkv(self.norm(tokens)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        queries, keys, vals = qkv.split(self.dims, dim=-1)  # (B, heads, N, d)
        scores = queries @ keys.transpose(-2, -1) * self.dims[0] ** -0.5
        if self.bias is not None:
            scores = scores + self.bias(grid)
        y = self.proj((scores.softmax(dim=-1) @ vals).transpose(1, 2).flatten(2))
        return to_map(tokens + self.drop_path(self.scale.gamma * y), grid)


class TokenFFN(nn.Module):
    """The MLP of MB3D, eq. 5: Linear(Linear_G(LN(X))) + X."""

    def __init__(self, value: values.TokenFFNBlock, layer_scale: float = 1e-5, drop: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(value.width)
        self.fc1 = nn.Linear(value.width, value.hidden)
        self.fc2 = nn.Linear(value.hidden, value.width)
        self.scale = LayerScale(value.width, layer_scale)
        self.act = activation(value.activation)
        self.drop_path = drop_path(drop)
        init_mlp(self.fc1, self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = to_tokens(x)
        y = self.fc2(self.act(self.fc1(self.norm(tokens))))
        return to_map(tokens + self.drop_path(self.scale.gamma * y), x.shape[2:])
