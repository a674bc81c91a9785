"""The supernet of V1's MetaPath space (V1 Sec. 4.2): one width, and at every place a soft choice between blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from timm.layers import trunc_normal_
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.func import functional_call

from pocketformer.architecture import FFN, Architecture, Attention, SearchSpace, Selection, Step, placement
from pocketformer.architecture import blocks as values
from pocketformer.errors import UserError
from pocketformer.models import Network, create_model
from pocketformer.models.stage import build_block, checkpointed, drop_path_rates
from pocketformer.supernet.elastic import SwitchNorm
from pocketformer.supernet.extraction import places
from pocketformer.supernet.gumbel import Draw
from pocketformer.supernet.paths import Head, MetaPath, calibratable, features

ALPHA_RATE = 10.0


def _check(space: SearchSpace) -> None:
    """Refuses what is not V1's."""
    if not space.metapath:
        raise UserError(f"space {space.name}: a MetaPath supernet needs a space of EfficientFormers (metapath: true)")
    if len(space.expansions) > 1:
        raise UserError(f"space {space.name}: a MetaPath supernet has one expansion, not {list(space.expansions)}")
    design = space.design
    conv = ("conv",) * len(design.downsampling)
    wanted = {"token_mixer": "pool", "attention": "tokens", "norm": "bn", "stem": "conv", "downsampling": conv}
    for switch, value in wanted.items():
        if (found := getattr(design, switch)) != value:
            name = switch.replace("_", " ")
            raise UserError(f"space {space.name}: a MetaPath supernet has {name} {value!r} only, not {found!r}")


class MetaPathSupernet(nn.Module):
    """The weights of all blocks of a MetaPath space at its largest widths, and alpha.

    Training runs `supernet(images, draw)`: eq. 8, all paths at once. `supernet(images, subnet)` runs one member and
    `run` one step of it: a narrower stage has the first channels, which `channels.sort_channels` makes those of largest
    norm (V1's widths are cut from a supernet of one width). It has one head, as V2's has in its trainings. Alpha learns
    at `alpha_rate` times the rate of the weights: AdamW moves both alike, and a choice is a matter of whole units.
    """

    def __init__(
        self,
        space: SearchSpace,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path: float = 0.0,
        layer_scale: float = 1e-5,
        alpha_rate: float = ALPHA_RATE,
    ):
        super().__init__()
        _check(space)
        self.space, self.num_classes, self.in_chans = space, num_classes, in_chans
        self.distilled = self.grad_checkpointing = False
        self.alpha_rate, self.calibration = alpha_rate, 0
        self._static: dict[values.BlockValue, nn.Module] = {}
        widths, expansion = space.whole.widths, space.expansions[-1]
        rates = iter(drop_path_rates(["ffn"] * sum(stage.depth for stage in space.stages), drop_path))
        self.stem = build_block(self.value(Step("stem", 0, -1, 0, widths[0])))
        self.downsamples, self.stages = nn.ModuleList(), nn.ModuleList()
        for j, (stage, width) in enumerate(zip(space.stages, widths, strict=True)):
            if j > 0:
                step = Step("downsampling", j, -1, widths[j - 1], width)
                self.downsamples.append(build_block(self.value(step)))
            steps = [Step("ffn", j, 0, width, width, expansion)]
            if stage.attention:
                steps.append(Step("attention", j, 0, width, width))
                steps.append(Step("ffn", j, 0, width, width, expansion, tokens=True))
            described = [self.value(step) for step in steps]
            paths = []
            for _ in range(stage.depth):
                rate = next(rates)
                paths.append(MetaPath(*(build_block(value, layer_scale, rate) for value in described)))
            self.stages.append(nn.ModuleList(paths))
        self.norms = nn.ModuleDict({"bn": nn.BatchNorm2d(widths[-1])})
        if space.stages[-1].attention:
            self.norms["ln"] = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def paths(self) -> list[MetaPath]:
        """Every MetaPath in order."""
        return [path for stage in self.stages for path in stage]

    @property
    def choices(self) -> tuple[int, ...]:
        """How many paths each MetaPath has."""
        return tuple(len(path.alpha) for path in self.paths)

    def importances(self) -> tuple[tuple[float, ...], ...]:
        """Of every MetaPath, by stage."""
        return tuple(tuple(path.importance() for path in stage) for stage in self.stages)

    def entropy(self) -> torch.Tensor:
        """Mean over the MetaPaths, in nats."""
        return torch.stack([path.entropy() for path in self.paths]).mean()

    def select(self, subnet: Architecture | Selection) -> Selection:
        return subnet if isinstance(subnet, Selection) else self.space.select(subnet)

    def forward(self, x: torch.Tensor, subnet: Architecture | Selection | Draw) -> torch.Tensor:
        if isinstance(subnet, Draw):
            return self._mixed(x, subnet)
        for step in self.select(subnet).steps:
            x = self.run(step, x)
        return x

    # --- training: all paths at once

    def _mixed(self, x: torch.Tensor, draw: Draw) -> torch.Tensor:
        recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        noise = iter(draw.noise)
        x = self.stem(x)
        for j, stage in enumerate(self.stages):
            x = self.downsamples[j - 1](x) if j > 0 else x
            on_tokens = x.new_zeros(())  # the share of networks that are on tokens here
            for path in stage:
                shares = path.shares(next(noise), draw.temperature)
                if recompute:
                    x = checkpointed(partial(path, shares=shares), x, list(path.modules()))
                else:
                    x = path(x, shares)
                on_tokens = shares[-1] * on_tokens + (0 if path.attention is None else shares[1])
        # A network ends with BatchNorm or LayerNorm, as its last block is an MB4D or an MB3D: eq. 8 goes on to here.
        found = (1 - on_tokens) * features(self.norms["bn"], x)
        if "ln" in self.norms:
            found = found + on_tokens * features(self.norms["ln"], x)
        return self.head(found)

    def parameter_groups(self, weight_decay: float) -> list[dict]:
        """What an optimiser takes. No decay for vectors and attention biases, as in a single network."""
        alphas = [path.alpha for path in self.paths]
        kept = {name for name, _ in self.named_parameters() if name.endswith(".bias.table")}
        groups = param_groups_weight_decay(self, weight_decay, no_weight_decay_list=kept)
        for group in groups:
            group["params"] = [p for p in group["params"] if not any(p is alpha for alpha in alphas)]
        return [*groups, {"params": alphas, "weight_decay": 0.0, "lr_scale": self.alpha_rate}]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the MetaPaths twice in training instead of keeping their activations."""
        self.grad_checkpointing = enable

    # --- one member

    def block(self, step: Step) -> nn.Module:
        """The block at the largest width whose channels a step takes."""
        if step.kind == "head":
            return Head(self.norms["ln" if step.tokens else "bn"], self.head)
        if step.slot < 0:
            return self.stem if step.kind == "stem" else self.downsamples[step.stage - 1]
        attention = self.space.stages[step.stage].attention
        path = self.stages[step.stage][step.slot // 2 if attention else step.slot]
        if step.kind == "attention":
            return path.attention
        return path.mlp if step.tokens else path.local

    def value(self, step: Step) -> values.BlockValue:
        """The static block that a step is."""
        space, j, width = self.space, step.stage, step.width
        grid, design = space.grids[j], space.design
        match step.kind:
            case "stem":
                return placement.stem(design, self.in_chans, width, design.resolution)
            case "downsampling":
                return placement.downsampling(design, j, step.in_width, width, space.grids[j - 1])
            case "head":
                return placement.head(design, width, grid, self.num_classes, False, step.tokens)
            case "attention":
                return placement.block(design, j, width, Attention(), grid)
        before = (Attention(),) if step.tokens else ()
        return placement.block(design, j, width, FFN(step.expansion), grid, before)

    def tensors(self, step: Step) -> dict[str, torch.Tensor]:
        """What the static block of a step holds, under its names: the first channels of each tensor, as views."""
        block, static = self.block(step), self.static(self.value(step))
        own = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        shapes = {**dict(static.named_parameters()), **dict(static.named_buffers())}
        return {name: own[name][tuple(slice(n) for n in shape.shape)] for name, shape in shapes.items()}

    def static(self, value: values.BlockValue) -> nn.Module:
        """A block of that value without weights of its own, whose norms can be calibrated."""
        if value not in self._static:
            with torch.device("meta"):
                if isinstance(value, values.Head):
                    norm = nn.LayerNorm(value.width) if value.norm == "ln" else nn.BatchNorm2d(value.width)
                    block = Head(norm, nn.Linear(value.width, value.num_classes))
                else:
                    block = build_block(value)
                self._static[value] = calibratable(block)
        return self._static[value]

    def run(self, step: Step, x: torch.Tensor) -> torch.Tensor:
        """Executes one step; the steps of a selection in order are its forward pass."""
        static = self.static(self.value(step)).train(self.training)
        for module in static.modules():
            if isinstance(module, SwitchNorm):
                module.calibration = self.calibration
        return functional_call(static, self.tensors(step), x)

    @contextmanager
    def calibrated(self, images: int) -> Iterator[None]:
        """Within, in eval mode, members take their norms' statistics from the first `images` of each batch."""
        self.calibration = images
        try:
            yield
        finally:
            self.calibration = 0

    @torch.no_grad()
    def extract(self, subnet: Architecture | Selection, drop_path: float = 0.0) -> Network:
        """A static network with copies of the weights and running statistics that the subnet uses."""
        selection = self.select(subnet)
        given = {"distilled": False, "in_chans": self.in_chans, "drop_path": drop_path}
        model = create_model(selection.architecture, self.num_classes, **given)
        model.to(self.head.weight.device, self.head.weight.dtype)
        state = self.tensors(selection.steps[-1])
        for step, path in places(selection):
            state.update({f"{path}.{name}": tensor for name, tensor in self.tensors(step).items()})
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        return model.train(self.training)
