"""Magnitude of weights, by which pruning decides (V2 App. B, Table 9)."""

import torch

from pocketformer.architecture import Selection
from pocketformer.supernet.supernet import Supernet


@torch.no_grad()
def cut_magnitude(supernet: Supernet, selection: Selection, stage: int, slot: int, expansion: float) -> float:
    """Mean absolute weight of the hidden channels that an FFN loses with a smaller expansion: their rows of both
    convolutions in front, and their columns of the one behind."""
    ffn, width = supernet.stages[stage][slot], selection.widths[stage]
    cut = slice(int(width * expansion), int(width * selection.expansion(stage, slot)))
    weights = (
        ffn.fc1.conv.weight[cut, :width],
        ffn.mid.conv.weight[cut],
        ffn.fc2.conv.weight[:width, cut],
    )
    return float(sum(w.abs().sum() for w in weights) / sum(w.numel() for w in weights))
