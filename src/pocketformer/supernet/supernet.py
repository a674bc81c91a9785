"""The supernet of a search space (paper Sec. 4.2.2): executes any of its subnets with shared weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from timm.layers import trunc_normal_
from torch import nn

from pocketformer.architecture import Architecture, SearchSpace, Selection, Step
from pocketformer.architecture import blocks as values
from pocketformer.errors import UserError
from pocketformer.models import Network, create_model
from pocketformer.models.stage import checkpointed, drop_path_rates
from pocketformer.supernet import elastic
from pocketformer.supernet.extraction import places


def _check(space: SearchSpace) -> None:
    """Refuses designs whose blocks have no elastic form."""
    design = space.design
    if space.metapath:
        raise UserError(f"space {space.name} is of EfficientFormers (V1): its supernet is a MetaPathSupernet")
    for switch, value in (("token_mixer", "ffn"), ("attention", "map"), ("norm", "bn"), ("stem", "conv")):
        if (found := getattr(design, switch)) != value:
            name = switch.replace("_", " ")
            raise UserError(f"space {space.name}: a supernet has {name} {value!r} only, not {found!r}")


class Supernet(nn.Module):
    """Shared weights of every member of `space`.

    `supernet(x, architecture_or_selection)` runs one subnet on images (B, in_chans, H, W); an architecture stands
    for its default selection. `drop_path` is the stochastic depth through which elastic depth is trained.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int = 1000,
        distilled: bool = True,
        in_chans: int = 3,
        drop_path: float = 0.0,
        layer_scale: float = 1e-5,
    ):
        super().__init__()
        _check(space)
        self.space = space
        self.num_classes, self.distilled, self.in_chans = num_classes, distilled, in_chans
        self.distilled_training = False
        self.grad_checkpointing = False
        steps = space.whole.steps
        layers = space.largest.blocks(num_classes=num_classes, distilled=distilled, in_chans=in_chans)
        rates = iter(drop_path_rates([s.kind for s in steps if s.slot >= 0], drop_path))
        self.stem = elastic.ElasticStem(layers[0], space.stages[0].widths)
        self.downsamples = nn.ModuleList()
        self.stages = nn.ModuleList(nn.ModuleList() for _ in space.stages)
        for step, value in zip(steps, layers, strict=True):
            widths = space.stages[step.stage].widths
            match value:
                case values.FFNBlock():
                    ffn = elastic.ElasticFFN(value, widths, space.expansions, layer_scale, next(rates))
                    self.stages[step.stage].append(ffn)
                case values.AttentionBlock():
                    attention = elastic.ElasticAttention(value, widths, layer_scale, next(rates))
                    self.stages[step.stage].append(attention)
                case values.ConvDownsampling():
                    self.downsamples.append(elastic.ElasticConvDownsampling(value, self._pairs(step.stage)))
                case values.AttentionDownsampling():
                    self.downsamples.append(elastic.ElasticAttentionDownsampling(value, self._pairs(step.stage)))
        last = space.stages[-1].widths
        self.norms = nn.ModuleDict({str(width): elastic.SwitchNorm(width) for width in last})
        self.head = nn.Linear(last[-1], num_classes)
        self.head_dist = nn.Linear(last[-1], num_classes) if distilled else None
        for head in filter(None, (self.head, self.head_dist)):
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def _pairs(self, stage: int) -> dict[str, int]:
        """{switch: output width} of the downsampling in front of a stage."""
        return {
            f"{before}-{after}": after
            for before in self.space.stages[stage - 1].widths
            for after in self.space.stages[stage].widths
        }

    def select(self, subnet: Architecture | Selection) -> Selection:
        return subnet if isinstance(subnet, Selection) else self.space.select(subnet)

    def block(self, step: Step) -> nn.Module:
        """The elastic block that executes a step (any but the head)."""
        match step.kind:
            case "stem":
                return self.stem
            case "downsampling":
                return self.downsamples[step.stage - 1]
            case _:
                return self.stages[step.stage][step.slot]

    def run(self, step: Step, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Executes one step; the steps of a selection in order are its forward pass."""
        if step.kind != "head":
            return self.block(step)(x, step)
        x = self.norms[str(step.width)](x).mean((2, 3))
        logits = self._linear(self.head, x)
        if self.head_dist is None:
            return logits
        distilled = self._linear(self.head_dist, x)
        if self.training and self.distilled_training:
            return logits, distilled
        return (logits + distilled) / 2

    @staticmethod
    def _linear(head: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, head.weight[:, : x.shape[1]], head.bias)

    def forward(self, x: torch.Tensor, subnet: Architecture | Selection):
        recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for step in self.select(subnet).steps:
            if recompute and step.slot >= 0:
                norms = elastic.norms_of(self.block(step), elastic.switch_of(step))
                x = checkpointed(partial(self.run, step), x, norms)
            else:
                x = self.run(step, x)
        return x

    def no_weight_decay(self) -> set[str]:
        """Attention biases, as in a single network (vectors are left out anyway)."""
        return {name for name, _ in self.named_parameters() if name.endswith(".bias.table")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the stages' blocks twice in training instead of keeping their activations."""
        self.grad_checkpointing = enable

    @contextmanager
    def calibrated(self, images: int) -> Iterator[None]:
        """Within, in eval mode, every norm takes its statistics from the first `images` of each batch."""
        norms = [m for m in self.modules() if isinstance(m, elastic.SwitchNorm)]
        for norm in norms:
            norm.calibration = images
        try:
            yield
        finally:
            for norm in norms:
                norm.calibration = 0

    @torch.no_grad()
    def extract(self, subnet: Architecture | Selection, drop_path: float = 0.0) -> Network:
        """A static network with copies of the weights, norms and running statistics that the subnet uses."""
        selection = self.select(subnet)
        model = create_model(
            selection.architecture,
            self.num_classes,
            distilled=self.distilled,
            in_chans=self.in_chans,
            drop_path=drop_path,
        ).to(self.head.weight.device, self.head.weight.dtype)
        state = {}
        for step, path in places(selection):
            static = model.get_submodule(path)
            tensors = elastic.shared(self.block(step), static, elastic.switch_of(step))
            state.update({f"{path}.{name}": tensor for name, tensor in tensors.items()})
        width = selection.widths[-1]
        state.update({f"norm.{name}": t for name, t in self.norms[str(width)].state_dict().items()})
        for name in ("head", "head_dist") if self.distilled else ("head",):
            head = getattr(self, name)
            state.update({f"{name}.weight": head.weight[:, :width], f"{name}.bias": head.bias})
        model.load_state_dict(state)
        return model.train(self.training)
