"""The deployed forms of EfficientFormer's (V1) blocks. All take and return maps (B, C, H, W)."""

import torch
from torch import nn

from pocketformer.architecture.design import Grid
from pocketformer.deploy.folding import activation, fold, folded_linear, plain_norm
from pocketformer.deploy.fuse import fuse_block
from pocketformer.models import efficientformer
from pocketformer.models.efficientformer import to_map, to_tokens


class FusedPool(nn.Module):
    """scale * (Pool(x) - x) + x, the residual included."""

    def __init__(self, scale: torch.Tensor):
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.register_buffer("scale", scale.detach().clone()[:, None, None])
        self.register_buffer("rest", (1 - scale.double()).to(scale).detach()[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.pool(x) + self.rest * x


class Residual(nn.Module):
    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class FusedMetaBlock(nn.Module):
    def __init__(self, block: efficientformer.MetaBlock, grid: Grid):
        super().__init__()
        if block.mixer is None:
            self.mixer = nn.Identity()
        elif isinstance(block.mixer, efficientformer.Pool):
            self.mixer = FusedPool(block.mixer_scale.gamma)
        else:
            self.mixer = Residual(fold(block.mixer, block.mixer_scale.gamma.double()))
        self.fc1, self.fc2 = fold(block.fc1), fold(block.fc2, block.scale.gamma.double())
        self.act = activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mixer(x)
        return x + self.fc2(self.act(self.fc1(x)))


class FusedTokenAttention(nn.Module):
    def __init__(self, block: efficientformer.TokenAttention, grid: Grid):
        super().__init__()
        self.heads, (key_dim, _, _) = block.heads, block.dims
        self.grid = tuple(grid)
        self.norm = plain_norm(block.norm)
        # Interleaved per head (q, k, v of head 1, then of head 2): put all queries first, then keys, then values.
        rows = torch.arange(block.qkv.out_features).reshape(self.heads, -1)
        parts = [part.flatten() for part in rows.split(block.dims, dim=1)]
        scale = torch.ones(block.qkv.out_features, dtype=torch.float64)
        scale[parts[0]] = key_dim**-0.5
        order = torch.cat(parts).to(block.qkv.weight.device)
        self.qkv = folded_linear(block.qkv, block.norm, scale.to(order.device), order)
        self.sizes = [len(part) for part in parts]
        self.register_buffer("offset", None if block.bias is None else block.bias(self.grid).detach().clone())
        self.proj = folded_linear(block.proj, scale=block.scale.gamma)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = to_tokens(x)
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(tokens)).split(self.sizes, dim=2)
        )
        scores = queries @ keys.transpose(-2, -1)
        if self.offset is not None:
            scores = scores + self.offset
        y = (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
        return to_map(tokens + self.proj(y), self.grid)


class FusedTokenFFN(nn.Module):
    def __init__(self, block: efficientformer.TokenFFN, grid: Grid):
        super().__init__()
        self.grid, self.norm = tuple(grid), plain_norm(block.norm)
        self.fc1 = folded_linear(block.fc1, block.norm)
        self.fc2 = folded_linear(block.fc2, scale=block.scale.gamma)
        self.act = activation(block.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = to_tokens(x)
        return to_map(tokens + self.fc2(self.act(self.fc1(self.norm(tokens)))), self.grid)


fuse_block.register(efficientformer.MetaBlock, FusedMetaBlock)
fuse_block.register(efficientformer.TokenAttention, FusedTokenAttention)
fuse_block.register(efficientformer.TokenFFN, FusedTokenFFN)
