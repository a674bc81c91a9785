"""Mask R-CNN and Faster R-CNN on our backbones, of torchvision's parts."""

import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from pocketformer.dense.backbone import Backbone
from pocketformer.dense.detection.heads import Heads
from pocketformer.dense.detection.instances import Instances
from pocketformer.dense.detection.parts import Anchors, BoxPredictor, MaskPredictor, ProposalHead, Proposals, RoIAlign
from pocketformer.training.engine import Backward, Figures

Sizes = tuple[tuple[int, int], ...]


class Pyramid(nn.Module):
    """Backbone and FPN: images (B, 3, H, W) to five maps of one width, at the backbone's strides and twice the last."""

    def __init__(self, backbone: Backbone, width: int):
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(list(backbone.widths), width, LastLevelMaxPool())
        self.strides = (*backbone.reductions, 2 * backbone.reductions[-1])

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn({str(i): found for i, found in enumerate(self.backbone(images))})


class Detector(nn.Module):
    """As both papers have it (MMDetection 2.19, R-50-FPN 1x), for `classes` classes besides the background.

    Images come normalised and padded; there is no `GeneralizedRCNNTransform`, so that what is random about a sample is
    drawn where samples are made, from (seed, epoch, sample), and the network itself is a plain function.

    Departures from MMDetection, all torchvision's: smooth L1 with beta 1/9 instead of L1 (both box losses); an anchor
    that is the best for an object is positive however small their overlap (MMDetection: from 0.3 on); convolutions of
    the FPN start from He's instead of Glorot's values, the box head from `nn.Linear`'s; masks are pasted with a margin
    of one of their 28 pixels, and learned from the shares of an object in them, which MMDetection rounds to 0 or 1.
    """

    def __init__(self, backbone: Backbone, classes: int, heads: Heads):
        super().__init__()
        self.heads, self.classes = heads, classes
        self.pyramid = Pyramid(backbone, heads.width)
        anchors = Anchors(self.pyramid.strides, heads.anchor_scale)
        self.rpn = Proposals(
            anchors,
            ProposalHead(heads.width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * heads.candidates, "testing": heads.candidates},
            post_nms_top_n={"training": heads.proposals, "testing": heads.proposals},
            nms_thresh=0.7,
        )
        masks = {}
        if heads.masks:
            masks = {
                "mask_roi_pool": RoIAlign(backbone.reductions, 14),
                "mask_head": MaskRCNNHeads(heads.width, (heads.width,) * heads.mask_convs, 1),
                "mask_predictor": MaskPredictor(heads.width, heads.width, classes + 1),
            }
        self.roi_heads = RoIHeads(
            RoIAlign(backbone.reductions, 7),
            TwoMLPHead(heads.width * 7 * 7, heads.hidden),
            BoxPredictor(heads.hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=heads.samples,
            positive_fraction=0.25,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),  # stds of 0.1, 0.1, 0.2, 0.2
            score_thresh=heads.score,
            nms_thresh=heads.nms,
            detections_per_img=heads.detections,
            **masks,
        )

    def forward(
        self, images: torch.Tensor, sizes: Sizes, targets: Instances | None = None
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """In training, the losses by name; else of each image boxes (N, 4) in its px, labels from 1, scores, and masks
        (N, 1, 28, 28) of probabilities within the boxes. `sizes`: of the images in the padded batch (B, 3, H, W)."""
        given = None if targets is None else targets.by_image()
        maps = self.pyramid(images)
        proposals, losses = self.rpn(ImageList(images, list(sizes)), maps, given)
        found, more = self.roi_heads(maps, proposals, list(sizes), given)
        return {**losses, **more} if self.training else found

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """For an optimiser: one group, with weight decay on norms and vectors too, as published."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "weight_decay": weight_decay}]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.pyramid.backbone.network.set_grad_checkpointing(enable)


class DetectionTask:
    """The sum of all losses; each is among the figures."""

    def __init__(self, model: Detector):
        self.model = model

    def run(self, images: torch.Tensor, targets: Instances, step: int, backward: Backward) -> Figures:
        losses = self.model(images, targets.sizes, targets)
        loss = torch.stack([found.float() for found in losses.values()]).sum()
        backward(loss)
        names = {"loss_objectness": "loss_rpn_class", "loss_rpn_box_reg": "loss_rpn_box"}
        names |= {"loss_classifier": "loss_class", "loss_box_reg": "loss_box"}
        return {"loss": loss.detach(), **{names.get(name, name): found.detach() for name, found in losses.items()}}
