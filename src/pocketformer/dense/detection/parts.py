"""Parts of a detector where torchvision's would compute something else: anchors, RoIAlign, and heads in float32."""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_area, roi_align

from pocketformer.dense.detection.instances import PADDED_TO

_RATIOS = (0.5, 1.0, 2.0)
_CANONICAL = 224 / 16  # px of a box's side that a stride of one stands for (FPN, eq. 1: 224 px on stride 16)


class Anchors(AnchorGenerator):
    """One scale and the ratios 0.5, 1 and 2 of height to width on maps of known strides.

    torchvision's takes the stride for the quotient of padded image and map: 61 px instead of 64 where 800 px make 13;
    and it rounds the anchors.
    """

    def __init__(self, strides: tuple[int, ...], scale: float):
        super().__init__(tuple((scale * s,) for s in strides), (_RATIOS,) * len(strides))
        self.strides = strides
        factors = torch.tensor(_RATIOS).sqrt()
        halves = torch.stack([-1 / factors, -factors, 1 / factors, factors], 1) / 2
        self.cell_anchors = [scale * s * halves for s in strides]

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Boxes (A, 4) of each image, float32 whatever the maps are."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(found.shape[-2:]) for found in feature_maps]
        steps = [[torch.tensor(s, device=device), torch.tensor(s, device=device)] for s in self.strides]
        boxes = torch.cat(self.grid_anchors(grids, steps))
        return [boxes for _ in image_list.image_sizes]


class Proposals(RegionProposalNetwork):
    """Learns from the anchors of each image alone, whatever larger one it shares a batch with.

    torchvision's takes the anchors in what the batch padded for negatives; MMDetection leaves them out, as here.
    """

    def assign_targets_to_anchors(
        self, anchors: list[torch.Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Of each image, labels (A,) 1, 0 or -1 for neither, and boxes (A, 4) that the anchors are to become."""
        own = [_inside(boxes, target["size"]) for boxes, target in zip(anchors, targets, strict=True)]
        assigned = super().assign_targets_to_anchors([a[i] for a, i in zip(anchors, own, strict=True)], targets)
        labels, matched = [], []
        for boxes, inside, label, match in zip(anchors, own, *assigned, strict=True):
            labels.append(label.new_full((len(boxes),), -1).masked_scatter(inside, label))
            matched.append(boxes.masked_scatter(inside[:, None], match))
        return labels, matched


def _inside(anchors: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Whose centres are on the image, were it padded alone."""
    height, width = (-(-side // PADDED_TO) * PADDED_TO for side in size)
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
    return (x < width) & (y < height)


class RoIAlign(nn.Module):
    """Boxes to maps (N, C, size, size), each from the level that suits its area; adaptive sampling, half-pixel centres.

    torchvision's `MultiScaleRoIAlign` has no half-pixel centres, and infers the strides from the first images that it
    sees, which goes wrong for small ones that are padded by much.
    """

    def __init__(self, strides: tuple[int, ...], size: int):
        super().__init__()
        self.strides, self.size = strides, size

    def forward(
        self, features: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: list[tuple[int, int]]
    ) -> torch.Tensor:
        maps = list(features.values())[: len(self.strides)]  # the coarsest is for proposals alone
        rois = torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)])
        levels = self._levels(rois[:, 1:])
        rows = [torch.where(levels == level)[0] for level in range(len(maps))]
        found = [
            roi_align(values.float(), rois[own], self.size, 1 / stride, 0, aligned=True)
            for values, stride, own in zip(maps, self.strides, rows, strict=True)
        ]
        # Back into order by sorting, which exporters can write for any number of boxes, unlike assignment.
        return torch.cat(found)[torch.cat(rows).sort()[1]]

    def _levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Of each box, the first map of at least the stride that its area asks for."""
        side = box_area(boxes).sqrt()
        wanted = torch.log2(side / _CANONICAL + 1e-6).floor()
        strides = torch.tensor(self.strides, device=boxes.device, dtype=torch.float32).log2()
        return (strides[None] < wanted[:, None]).sum(1).clamp(max=len(self.strides) - 1)


# Of half precision, boxes would have coordinates in steps of up to 8 px: what heads give is float32 from here on.


class ProposalHead(RPNHead):
    def forward(self, x: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logits, deltas = super().forward(x)
        return [found.float() for found in logits], [found.float() for found in deltas]


class BoxPredictor(FastRCNNPredictor):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).float()
