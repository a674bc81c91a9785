"""What a MetaPath supernet is made of: the choice at one place, and the head behind either partition."""

import torch
from torch import nn

from pocketformer.models.efficientformer import to_tokens
from pocketformer.supernet.elastic import SwitchNorm


class MetaPath(nn.Module):
    """MP of eq. 7: MB4D (`local`), MB3D (`attention` and `mlp`) where the stage has it, or identity. `alpha` holds a
    number for each of them, in this order."""

    def __init__(self, local: nn.Module, attention: nn.Module | None = None, mlp: nn.Module | None = None):
        super().__init__()
        self.local, self.attention, self.mlp = local, attention, mlp
        self.alpha = nn.Parameter(torch.zeros(2 if attention is None else 3))

    def forward(self, x: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Eq. 8: every path's output times its share."""
        mixed = shares[0] * self.local(x) + shares[-1] * x
        return mixed if self.attention is None else mixed + shares[1] * self.mlp(self.attention(x))

    def shares(self, noise: torch.Tensor, temperature: float) -> torch.Tensor:
        """softmax((alpha + epsilon) / tau) of eq. 8."""
        return ((self.alpha + noise.to(self.alpha)) / temperature).softmax(0)

    @torch.no_grad()
    def entropy(self) -> torch.Tensor:
        """Of softmax(alpha), in nats."""
        return torch.special.entr(self.alpha.softmax(0)).sum()

    @torch.no_grad()
    def importance(self) -> float:
        """(p_4D + p_3D) / p_I of softmax(alpha): how much likelier a block is than none (contract 6.14)."""
        paths = self.alpha.double()
        return (paths[:-1] - paths[-1]).exp().sum().item()


def features(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Final norm and mean, (B, C): LayerNorm on tokens, BatchNorm on the map (B, C, H, W)."""
    return norm(to_tokens(x)).mean(1) if isinstance(norm, nn.LayerNorm) else norm(x).mean((2, 3))


class Head(nn.Module):
    """Final norm, mean and classifier."""

    def __init__(self, norm: nn.Module, classifier: nn.Linear):
        super().__init__()
        self.norm, self.head = norm, classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(features(self.norm, x))


def calibratable(block: nn.Module) -> nn.Module:
    """The block with norms that can take their statistics from the images at hand."""
    for parent in list(block.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SwitchNorm(child.num_features))
    return block
