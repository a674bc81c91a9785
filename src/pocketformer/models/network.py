"""`Network`: the static module of any `Architecture`, with timm's model contract (contract 4)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import fx, nn

from pocketformer.architecture import Architecture
from pocketformer.architecture import blocks as values
from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models import checkpoints, conversion, layers
from pocketformer.models.bias import AttentionBias
from pocketformer.models.efficientformer import to_map, to_tokens
from pocketformer.models.stage import Stage, build_block, drop_path_rates


class Network(nn.Module):
    """A static network of images (B, in_chans, H, W).

    In training it returns the mean of its two heads' logits, or with `set_distilled_training(True)` the pair
    (head, distillation head), as timm's models do. An image size other than `resolution` is refused unless its
    attention grids are the same, or the network is `dynamic`.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        resolution: int | Grid | None = None,
        distilled: bool = True,
        in_chans: int = 3,
        drop_path: float = 0.0,
        layer_scale: float = 1e-5,
        dropout: float = 0.0,
        dynamic: bool = False,
        global_pool: str = "avg",
    ):
        super().__init__()
        described = architecture.blocks(resolution, num_classes, distilled, in_chans)
        self.architecture = architecture
        self.resolution: Grid = described[0].grid
        self.num_classes, self.in_chans = num_classes, in_chans
        self.distilled = distilled
        self.distilled_training = False
        self.num_features = self.head_hidden_size = architecture.stages[-1].width
        self.pretrained_cfg: dict[str, Any] = {  # of our data layer; timm's builder replaces it
            "input_size": (in_chans, *self.resolution),
            "mean": (0.5,) * in_chans,
            "std": (0.5,) * in_chans,
        }
        self._traits = {  # timm's word for what describes the model itself, not its weights' source
            "img_size": self.resolution,
            "first_conv": "stem.conv1.conv" if isinstance(described[0], values.Stem) else "stem.conv.conv",
        }

        rates = iter(drop_path_rates([b.kind for b in described if b.kind in ("ffn", "attention")], drop_path))
        rest = iter(described)
        self.stem = build_block(next(rest))
        stages = []
        for j, stage in enumerate(architecture.stages):
            downsample = build_block(next(rest)) if j > 0 else nn.Identity()
            blocks = [build_block(next(rest), layer_scale, next(rates)) for _ in stage.blocks]
            stages.append(Stage(downsample, blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = _feature_info(architecture)
        self.on_tokens = described[-1].norm == "ln"
        width = self.num_features
        self.norm = nn.LayerNorm(width) if self.on_tokens else layers.norm(described[-1].norm, width)
        self.head_drop = nn.Dropout(dropout)
        self.head, self.head_dist = nn.Identity(), nn.Identity() if distilled else None
        self.reset_classifier(num_classes, global_pool)
        self.set_dynamic(dynamic)

    # --- input size

    def set_dynamic(self, enable: bool = True) -> None:
        """Take images whose size changes from call to call: the tables of attention biases are sampled in each
        forward at any grid but the built one, at which everything is as without."""
        self.dynamic = enable
        self._traits = {**self._traits, "fixed_input_size": not enable}
        for module in self.modules():
            if isinstance(module, AttentionBias):
                module.dynamic = enable

    def set_input_size(self, img_size: int | Grid) -> None:
        """Another resolution, (H, W) in px, for good: tables of attention biases are sampled for its grids, once.
        They become new parameters: set the size before an optimiser takes them."""
        described = self.architecture.blocks(img_size, self.num_classes, self.distilled, self.in_chans)
        for module, value in zip(self.sequence(), described, strict=False):
            if getattr(module, "bias", None) is not None:
                module.bias.set_grid(value.query_grid if isinstance(value, values.AttentionBlock) else value.grid)
        self.resolution = described[0].grid
        update_model_input_size(self, self.resolution)  # timm's own record, which its exports read

    def sequence(self) -> list[nn.Module]:
        """The blocks of stem and stages in the order of `architecture.blocks()`, without the head."""
        modules = [self.stem]
        for stage in self.stages:
            if not isinstance(stage.downsample, nn.Identity):
                modules.append(stage.downsample)
            modules.extend(stage.blocks)
        return modules

    # --- forward

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_chans, H, W) to the normed last map (B, C, h, w), or tokens (B, h * w, C) where the last stage
        ends on them, as timm's V1."""
        return self._final_norm(self.stages(self.stem(self._checked(x))))

    def forward_head(
        self, x: torch.Tensor, pre_logits: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """What `forward_features` gave to logits (B, num_classes), or to what the classifiers take."""
        if self.global_pool == "avg":
            x = x.mean(1) if self.on_tokens else x.mean((2, 3))
        x = self.head_drop(x)
        if pre_logits:
            return x
        logits = self.head(x)
        if self.head_dist is None:
            return logits
        distilled = self.head_dist(x)
        if self.training and self.distilled_training:
            return logits, distilled
        return (logits + distilled) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps of stages (all, the last n, or those of `indices`), and the final features unless
        `intermediates_only`. `norm` applies the final norm to the last stage's."""
        if output_fmt != "NCHW":
            raise UserError(f"output format {output_fmt!r}: only NCHW")
        wanted, last = feature_take_indices(len(self.stages), indices)
        x, found = self.stem(self._checked(x)), []
        for j, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if j in wanted:
                at_end = norm and j == len(self.architecture.stages) - 1
                found.append(self._normed_map(x) if at_end else x)
        if intermediates_only:
            return found
        at_end = j == len(self.architecture.stages) - 1
        return (self._final_norm(x) if at_end else x), found

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, fx.Proxy):  # a symbolic trace, in which images have no shape yet
            return x
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            height, width = self.resolution
            want = f"(B, {self.in_chans}, {height}, {width})"
            raise UserError(f"this model takes images of shape {want}, not {tuple(x.shape)}")
        self.architecture.design.check_size(tuple(x.shape[2:]))
        return x

    def _final_norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(to_tokens(x) if self.on_tokens else x)

    def _normed_map(self, x: torch.Tensor) -> torch.Tensor:
        return to_map(self._final_norm(x), x.shape[2:]) if self.on_tokens else self.norm(x)

    # --- the rest of timm's contract

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return (head, distillation head) logits in training; needs `distilled=True`."""
        if enable and self.head_dist is None:
            raise UserError("distilled training needs a model built with distilled=True")
        self.distilled_training = enable

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the stages' blocks twice in training instead of keeping their activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module | None]:
        return self.head, self.head_dist

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers; none (features come out) with 0 classes."""
        if global_pool is not None:
            if global_pool not in ("avg", ""):
                raise UserError(f"global pool {global_pool!r} is neither 'avg' nor '' (none)")
            self.global_pool = global_pool
        if num_classes < 0:
            raise UserError(f"a classifier has 0 (none) or more classes, not {num_classes}")
        self.num_classes = num_classes
        where = get_device_dtype(self)
        for name in ("head", "head_dist"):
            if getattr(self, name) is None:
                continue
            head = nn.Identity()
            if num_classes > 0:
                head = nn.Linear(self.num_features, num_classes, **where)
                trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)
            setattr(self, name, head.train(self.training))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the stages of `indices` do not need."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        if prune_norm or pruned:
            self.norm, self.on_tokens = nn.Identity(), False
        self.stages = self.stages[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return wanted

    def no_weight_decay(self) -> set[str]:
        """Attention biases (timm itself leaves out vectors: norms, layer scales, biases)."""
        return {name for name, _ in self.named_parameters() if name.endswith(".bias.table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise rates: stem, stages (or their blocks), final norm."""
        blocks = [] if coarse else [(r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": [*blocks, (r"^stages\.(\d+)", None), (r"^norm", (99999,))]}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; but the official implementation's and timm's names are converted: timm's `checkpoint_path` and
        the like hand over a file's tensors as they are."""
        return super().load_state_dict(conversion.renamed(state_dict, self, strict), strict, assign)

    def export_checkpoint(self, layout: str = "official") -> dict[str, torch.Tensor]:
        """A state dict that the official implementation ("official") or timm's ("timm") loads."""
        return checkpoints.export_checkpoint(self, layout)


def _feature_info(architecture: Architecture) -> list[dict[str, Any]]:
    design, info = architecture.design, []
    reduction = design.stem_strides[0] * design.stem_strides[1]
    for j, stage in enumerate(architecture.stages):
        if j > 0:
            reduction *= design.stage_strides[j - 1]
        info.append({"num_chs": stage.width, "reduction": reduction, "module": f"stages.{j}"})
    return info


def create_model(
    architecture: Architecture | str | os.PathLike,
    num_classes: int = 1000,
    resolution: int | Grid | None = None,
    distilled: bool = True,
    in_chans: int = 3,
    drop_path: float = 0.0,
    layer_scale: float = 1e-5,
    dropout: float = 0.0,
    dynamic: bool = False,
) -> Network:
    """A freshly initialised network of an architecture, a published name or the path of an architecture's JSON.

    `resolution` (int or (height, width), px) is the architecture's own unless given; `drop_path` the rate of the
    last block; `layer_scale` the initial value (1e-5 as published; short trainings want more); `dynamic` takes
    images of any size from call to call.
    """
    return Network(
        Architecture.find(architecture),
        num_classes=num_classes,
        resolution=resolution,
        distilled=distilled,
        in_chans=in_chans,
        drop_path=drop_path,
        layer_scale=layer_scale,
        dropout=dropout,
        dynamic=dynamic,
    )
