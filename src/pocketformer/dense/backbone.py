"""A network as the backbone of a detector or a segmenter: the maps of its stages, at any image size."""

import torch
from torch import nn

from pocketformer.architecture.design import Grid
from pocketformer.models import Network


class Backbone(nn.Module):
    """Images (B, 3, H, W) of any size to the maps of all stages, finest first.

    Tables of attention biases are sampled once for `size`, the images that the training is about; where an image has
    another, in that forward (contract 6.11). The published code starts from zeros instead and resizes the gathered
    N x N matrix in each forward. As there, V1's maps pass through a GroupNorm each, new weights, and V2's are as they
    are.

    With `frozen_norms` BatchNorms keep their statistics and do not learn (V2 Sec. 5.2), for weights from a checkpoint.
    """

    def __init__(self, network: Network, size: int | Grid, frozen_norms: bool = False):
        super().__init__()
        network.set_input_size(size)
        network.set_dynamic()
        network.prune_intermediate_layers(range(len(network.stages)), prune_norm=True, prune_head=True)
        self.network = network
        self.widths = tuple(info["num_chs"] for info in network.feature_info)
        self.reductions = tuple(info["reduction"] for info in network.feature_info)
        on_tokens = network.architecture.design.attention == "tokens"
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) if on_tokens else nn.Identity() for width in self.widths)
        self.frozen_norms = frozen_norms
        for norm in self._frozen():
            norm.requires_grad_(False)
        self.train()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps (B, C_j, H / s_j, W / s_j), rounded up, of `widths` C and `reductions` s."""
        maps = self.network.forward_intermediates(x, intermediates_only=True)
        return [norm(found) for norm, found in zip(self.norms, maps, strict=True)]

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for norm in self._frozen():
            norm.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        """Looked for anew: synchronised norms, which take the place of these on several GPUs, are to stay frozen too
        (in the published code they do not)."""
        kind = nn.modules.batchnorm._BatchNorm
        return [module for module in self.network.modules() if self.frozen_norms and isinstance(module, kind)]
