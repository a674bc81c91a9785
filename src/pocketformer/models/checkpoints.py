"""Checkpoints of any origin into a network, and a network's weights in the layouts of others (contract 4)."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pocketformer.architecture.design import Grid
from pocketformer.errors import UserError
from pocketformer.models import layouts, parts, tables, weights

if TYPE_CHECKING:
    from pocketformer.models.network import Network

State = dict[str, torch.Tensor]
_RECOGNISED = 0.2  # the share of a network's names that a file must have to be taken for one of a layout
_MAP_NORM = re.compile(r"norm[0246]\.")  # of the official backbones for detection, behind each stage
_IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)  # how both published families saw images


@dataclass(frozen=True)
class Loaded:
    """What `load_checkpoint` found and did: the file, its layout, the heads of the file that were dropped and the
    heads of the network that were copied from another, the tables of attention biases that were re-sampled; the
    (mean, std) of the images that the weights saw, where that is known; and `notes`, what is out of the ordinary, in
    sentences. `str()` is one line."""

    path: Path
    layout: str
    dropped: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    normalisation: weights.Normalisation | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join((f"{self.path}: {self.layout} layout", *self.notes))


def load_checkpoint(
    model: torch.nn.Module, path: str | os.PathLike, *, ema: bool = False, resolution: int | Grid | None = None
) -> Loaded:
    """Loads weights of the official implementation, of timm or of ours into `model`.

    Args:
        model: a network, or timm's `features_only` wrapper of one.
        path: a torch file (a state dict, bare or as `model`, `state_dict`, `model_ema` among other things), a
            safetensors file, or a folder of ours or Hugging Face's.
        ema: take the averaged weights of a training's file.
        resolution: of the network that the file is from, px; needed only where its attention grids are neither
            square nor this model's, and not stated (our files state it).

    A classifier for another number of classes is dropped and the model keeps its own; one classifier fills both of
    a model that has two. Tables of attention biases from another resolution are re-sampled. What a model was pruned
    of is passed over. Each of these is reported, and logged as a warning of "pocketformer". `model.pretrained_cfg`
    gets the weights' mean and std. Precision, device and mode of the model stay.

    Raises:
        UserError: a file that is missing, damaged, holds code, or is of another network, with the first
            differences; the model is then as it was.
    """
    network = _network_of(model)
    loaded = fit(network, weights.read(path, ema), path, resolution)
    if network is not model:
        _set_normalisation(model, network.in_chans, loaded.normalisation)
    for note in loaded.notes:
        logging.getLogger("pocketformer").warning("%s: %s", path, note)
    return loaded


def fit(
    model: "Network", found: weights.Weights, path: str | os.PathLike, resolution: int | Grid | None = None
) -> Loaded:
    """`load_checkpoint` of a file that was read, without the warnings: for those who tell its `notes` themselves."""
    given, loaded = matched(model, found, path, resolution)
    model.load_state_dict({**model.state_dict(), **given})
    _set_normalisation(model, model.in_chans, loaded.normalisation)
    return loaded


def matched(
    model: "Network",
    found: weights.Weights,
    path: str | os.PathLike,
    resolution: int | Grid | None = None,
    strict: bool = True,
) -> tuple[State, Loaded]:
    """The tensors for `model`, which is left as it is, under its names; not `strict`: as many as there are."""
    layout, names, found = recognise(model, found, path, strict)
    own = model.state_dict()
    given = {ours: found.tensors[theirs] for ours, theirs in names.items() if theirs in found.tensors}
    named = set(names.values())
    extra = [name for name in found.tensors if name not in named and not _spare(name)]
    beside = [name for name in extra if parts.is_beside(name)]
    extra = [name for name in extra if name not in beside]

    heads, dropped, copied, notes = _heads(own, found.tensors)
    given = {name: tensor for name, tensor in given.items() if not _is_head(name)} | heads
    normless = not model.num_classes and not any(name.startswith("norm.") for name in given)
    if skipped := _skipped(model, given):
        notes = [f"this model was pruned: {', '.join((*skipped, *dropped))} of the file left out"]
        given = {name: tensor for name, tensor in given.items() if name in own}
    if normless and "norm.weight" in own:
        notes.append("the file has no final norm: this model keeps its own")
    if normless and (norms := sorted(name for name in extra if _MAP_NORM.match(name))):
        extra = [name for name in extra if name not in norms]
        notes.append(f"the detector's norms of maps ({weights.first(dict.fromkeys(n[:5] for n in norms), 4)}) left out")
    if beside:
        notes.append(f"left out of the file: {parts.first(dict.fromkeys(_owner(name) for name in beside))}")
    given = {name: t.flatten() if name.endswith(".gamma") else t for name, t in given.items()}
    given, note_of_channels = for_channels(model, given)
    notes += note_of_channels
    stated = resolution or found.resolution
    given, resampled, note = tables.at_grids(model, given, stated, square=layout == "official", path=path)

    wrong = []
    for name, tensor in own.items():
        if name in given:
            if name.endswith("num_batches_tracked") and tables.is_plain(given[name]):
                given[name] = given[name].to(tensor.dtype)  # halved with the rest, in some files
            wrong += [f"{names[name]} is {why}" for why in _misfit(given[name], tensor)]
        elif strict and not _may_lack(name, given) and not (normless and name.startswith("norm.")):
            wrong.append(f"{names[name]} {_text(tensor)} is missing")
    wrong += [f"{weights.shown(name)} is not this model's" for name in extra if strict]
    if wrong:
        count = f"{len(wrong)} differences, first " if len(wrong) > 3 else ""
        raise UserError(f"weights {path} ({layout} layout) do not fit this model: {count}{'; '.join(wrong[:3])}")
    normalisation = found.normalisation or (_IMAGENET if layout != layouts.OURS else None)
    if normalisation is not None:
        normalisation = tuple(_per_channel(values, model.in_chans) for values in normalisation)
    return given, Loaded(Path(path), layout, dropped, copied, resampled, normalisation, (*found.notes, *notes, *note))


def recognise(
    model: "Network", found: weights.Weights, path: str | os.PathLike, strict: bool = True
) -> tuple[str, dict[str, str], weights.Weights]:
    """The layout whose names for this network, unpruned, the file has most of, these names ({ours: theirs}), and the
    part of the file that has them."""
    best: tuple[float, str, dict[str, str]] = (0, "", {})
    keys = list(_unpruned(model).state_dict())
    for layout in layouts.LAYOUTS:
        try:
            names = layouts.names(model.architecture, layout, keys)
        except UserError:  # the layout cannot hold this network, so the file is not of this layout or network
            continue
        names = {ours: theirs.replace("dist_head.", "head_dist.") for ours, theirs in names.items()}
        count = max(parts.count(found.tensors, set(names.values())).values(), default=0)
        best = max(best, (count, layout, names), key=lambda candidate: candidate[0])
    count, layout, names = best
    if count < _RECOGNISED * len(model.state_dict()) * strict or not names:
        raise UserError(
            f"weights {path} fit neither this model nor a layout of it: they begin with {weights.first(found.tensors)}"
            f" (this model has {weights.first(model.state_dict())})"
        )
    return layout, names, found.of(set(names.values()), path)


def export_checkpoint(model: "Network", layout: str = "official") -> State:
    """A state dict, copied, under the names, in the order and with the extra tables of the official implementation
    ("official"), of timm ("timm"), or as it is ("pocketformer").

    A published network loads strictly into its namesake there. A searched one is as well named; timm builds V2's as
    `EfficientFormerV2(depths, embed_dims=…, mlp_ratios=…, num_vit=…)` where its attention blocks are the last
    `num_vit` of both stages 3 and 4, and V1's as `EfficientFormer(depths, embed_dims=…, num_vit=…)` with one
    expansion throughout. timm's V1 always has two heads: an only head is written as both, whose mean it is.

    Raises `UserError` naming what the layout cannot hold.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    names = layouts.names(model.architecture, layout, own)
    if layout == layouts.OURS:
        return own
    if is_pruned(model):
        raise UserError(f"the {layout} layout cannot hold a network whose last stages or norm were taken out")
    biases = {f"{name}.bias.table": module.bias for name, module in tables.attentions(model)}
    layouts.check_export(model.architecture, layout, (bias.grid for bias in biases.values()))
    v1 = layouts.is_v1(model.architecture)
    result = {}
    for ours, theirs in names.items():
        tensor = own[ours]
        if layout == "official" and not v1 and ours.endswith(".gamma"):
            tensor = tensor[:, None, None]
        result[theirs] = tensor
        if ours in biases and (layout == "official" or v1):  # a buffer that timm's V2 does not keep
            result[theirs.removesuffix("es") + "_idxs"] = biases[ours].index.clone()
    if layout == "timm" and v1 and model.head_dist is None and model.num_classes:
        result |= {f"head_dist.{name}": result[f"head.{name}"].clone() for name in ("weight", "bias")}
    return result


# --- the model


def is_pruned(model: "Network") -> bool:
    """Whether its last stages or its norm were taken out (`prune_intermediate_layers`, `features_only`)."""
    return len(model.stages) < len(model.architecture.stages) or isinstance(model.norm, torch.nn.Identity)


def _network_of(model: torch.nn.Module) -> "Network":
    network, inner = None, model
    while isinstance(inner, torch.nn.Module):  # out of torch.compile's, parallel training's and timm's wrappers
        network = inner
        inner = next((m for name in ("_orig_mod", "module", "model") if (m := getattr(inner, name, None))), None)
    if not hasattr(network, "architecture") or not hasattr(network, "sequence"):
        raise UserError(f"load_checkpoint takes a network of ours, not {type(model).__name__}")
    return network


def _unpruned(model: "Network") -> "Network":
    """The model, or one without values that has what it was pruned of."""
    if not is_pruned(model):
        return model
    with torch.device("meta"):
        return type(model)(model.architecture, 1, model.resolution, model.distilled, model.in_chans)


def _skipped(model: "Network", given: State) -> list[str]:
    """Which stages, and whether the norm, are given that a model was pruned of."""
    parts = [f"stages.{j}" for j in range(len(model.stages), len(model.architecture.stages))]
    parts += ["norm"] if is_pruned(model) else []
    return [part for part in parts if any(name.startswith(f"{part}.") for name in given)]


def _set_normalisation(model: torch.nn.Module, channels: int, values: weights.Normalisation | None) -> None:
    cfg = getattr(model, "pretrained_cfg", None)
    if values is not None and len(values[0]) == channels and isinstance(cfg, dict):
        cfg.update(mean=tuple(values[0]), std=tuple(values[1]))


# --- the parts of a file that may differ


def _owner(name: str) -> str:
    """Whose tensor one beside a network's is: what a profiler left in each layer is of one kind."""
    return name.rpartition(".")[2] if name.endswith(("total_ops", "total_params", "n_averaged")) else name.split(".")[0]


def for_channels(model: "Network", given: State) -> tuple[State, list[str]]:
    """The tensors with the first convolution for the model's number of channels; and a note if it had another."""
    name = f"{model._traits['first_conv']}.weight"
    weight = given.get(name)
    if weight is None or weight.ndim != 4 or not weight.is_floating_point() or not tables.is_plain(weight):
        return given, []
    channels = weight.shape[1]
    if channels in (0, model.in_chans):
        return given, []
    how = "summed" if model.in_chans == 1 else "repeated and scaled" if channels < model.in_chans else "cut and scaled"
    note = f"the first convolution was {how}: the file's images have {channels} channels, this model's {model.in_chans}"
    return {**given, name: parts.adapted(weight, model.in_chans)}, [note]


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Mean or std of images with another number of channels, as their first convolution is adapted."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _spare(name: str) -> bool:
    """Whether a file may hold this without the network having it."""
    return _is_head(name) or name.endswith(("attention_bias_idxs", "num_batches_tracked"))


def _is_head(name: str) -> bool:
    return name.startswith(("head.", "head_dist."))


def _may_lack(name: str, given: State) -> bool:
    """Whether the network keeps its own where a file has none: a whole head, not half of one."""
    whole = _is_head(name) and f"{name.split('.')[0]}.weight" not in given
    return whole or name.endswith("num_batches_tracked")


def _heads(own: State, found: State) -> tuple[State, tuple[str, ...], tuple[str, ...], list[str]]:
    """The heads to load, which of the file's were dropped, which of the network's are copies, and notes."""
    here = [head for head in ("head", "head_dist") if f"{head}.weight" in own]
    there = {head: found[f"{head}.weight"] for head in ("head", "head_dist") if f"{head}.weight" in found}
    classes = len(own["head.weight"]) if here else 0
    others = {head: tensor for head, tensor in there.items() if tensor.shape[:1] != (classes,)}
    dropped, copied, notes = [], [], []
    given: State = {}
    if others:
        dropped += others
        kept = f"this model has {classes} and keeps its own" if here else "this model has none"
        were = f"of {others[dropped[0]].shape[:1].numel()} classes {'was' if len(others) == 1 else 'were'} dropped"
        notes.append(f"{' and '.join(others)} {were}: {kept}")
    elif here and "head_dist" in there and "head_dist" not in here:
        dropped.append("head_dist")
        notes.append("head_dist was dropped: this model has one head")
    for head in here:
        source = head if head in there else "head"
        if source not in there:
            notes.append(f"the file has no {head}: this model keeps its own")
        elif source not in dropped:
            parts = [part for part in ("weight", "bias") if f"{source}.{part}" in found]
            given |= {f"{head}.{part}": found[f"{source}.{part}"] for part in parts}
            if source != head:
                copied.append(head)
                notes.append(f"{head} is a copy of the file's only head")
    return given, tuple(dropped), tuple(copied), notes


def _misfit(found: torch.Tensor, wanted: torch.Tensor) -> list[str]:
    """Why one tensor cannot become the other, if it cannot."""
    if not tables.is_plain(found) or found.is_floating_point() != wanted.is_floating_point():
        kind = found.dtype if found.layout is torch.strided else found.layout
        return [f"of another kind ({str(kind).removeprefix('torch.')})"]
    if found.shape != wanted.shape:
        return [f"{_text(found)}, not {_text(wanted)}"]
    return [] if found.is_meta or bool(found.isfinite().all()) else ["not finite (NaN or infinite values)"]


def _text(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
