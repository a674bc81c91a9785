"""Layouts: the names that the official implementation and timm give to a network's tensors (contract 6.1, 6.4).

A layout is a list of pairs (ours, theirs) of modules or single parameters, in the order in which theirs are
registered. Loading and exporting both use it. A published block with a token mixer is two of ours: attention, FFN.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields

from pocketformer.architecture import Architecture
from pocketformer.architecture.design import EFFICIENTFORMER, Design, Grid
from pocketformer.errors import UserError

OURS = "pocketformer"
LAYOUTS = (OURS, "official", "timm")
# Switches that change no name; their strides are checked apart, as a file may well start a network of other ones.
_NAMELESS = {"resolution", "activation", "stem_activation", "attention_strides", "stem_strides", "stage_strides"}
_STRIDES = ("stem_strides", "stage_strides", "attention_strides")
_V1_GRID = (7, 7)

Pairs = Iterator[tuple[str, str]]


def names(architecture: Architecture, layout: str, keys: Iterable[str]) -> dict[str, str]:
    """{our name: theirs} for the tensors `keys` of a network's state dict, in their order.

    Raises `UserError` saying what the layout has no name for.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is unknown; known: {', '.join(LAYOUTS)}")
    keys = list(keys)
    if layout == OURS:
        return {key: key for key in keys}
    _check(architecture, layout)
    members: dict[str, list[str]] = {}
    for key in keys:
        members.setdefault(key.rpartition(".")[0], []).append(key)
    single = set(keys)
    result = {}
    # What a family or a network lacks (a middle convolution, a second head) is simply not among the keys.
    for ours, theirs in _official(architecture) if layout == "official" else _timm(architecture):
        if ours in single:
            result[ours] = theirs
        for key in members.get(ours, ()):
            result[key] = theirs + key.removeprefix(ours)
    if homeless := [key for key in keys if key not in result]:
        raise UserError(f"the {layout} layout has no name for {homeless[0]}")
    return result


def is_v1(architecture: Architecture) -> bool:
    return architecture.design.attention == "tokens"


def check_export(architecture: Architecture, layout: str, grids: Iterable[Grid]) -> None:
    """Raises `UserError` for strides and grids of attention biases that theirs are not built with."""
    for name in _STRIDES:
        wanted, found = getattr(_published(architecture), name), getattr(architecture.design, name)
        if found != wanted:
            raise _refusal(layout, f"{name.replace('_', ' ')} {found}: only {wanted}")
    if isinstance(architecture.design.activation, tuple):  # any single one is an argument of theirs
        raise _refusal(layout, f"another activation in each stage ({', '.join(architecture.design.activation)})")
    for grid in set(grids):
        if is_v1(architecture) and grid != _V1_GRID:
            height, width = grid
            raise _refusal(layout, f"V1's attention on a grid of {height}x{width}: only 7x7 (set_input_size(224))")
        if layout == "official" and grid[0] != grid[1]:
            raise _refusal(layout, "attention on grids that are not square")


def _published(architecture: Architecture) -> Design:
    return EFFICIENTFORMER if is_v1(architecture) else Design()


def _refusal(layout: str, what: str) -> UserError:
    return UserError(f"the {layout} layout cannot hold {what}")


def _check(architecture: Architecture, layout: str) -> None:
    if len(architecture.stages) != 4:
        raise _refusal(layout, f"{len(architecture.stages)} stages: only 4")
    published = _published(architecture)
    for field in fields(Design):
        wanted, found = getattr(published, field.name), getattr(architecture.design, field.name)
        if field.name not in _NAMELESS and found != wanted:
            raise _refusal(layout, f"the design switch {field.name}={found!r}: only {wanted!r}")
    for j, stage in enumerate(architecture.stages):
        kinds = [str(block) for block in stage.blocks]
        for i, kind in enumerate(kinds):
            if kind == "attention" and (i + 1 == len(kinds) or kinds[i + 1] == "attention"):
                raise _refusal(layout, f"an attention block without an FFN behind it (stage {j + 1}, block {i + 1})")
        if not is_v1(architecture):
            continue
        if ("attention" in kinds) != (j == 3):
            where = "no attention in stage 4" if j == 3 else f"attention in stage {j + 1}"
            raise _refusal(layout, f"{where}: V1 has it there and nowhere else")
        mixed = [attention is not None for attention, _, _ in _units(architecture, j)]
        if mixed != sorted(mixed):
            raise _refusal(layout, "an FFN without attention behind V1's first attention block")


def _units(architecture: Architecture, stage: int) -> Iterator[tuple[str | None, str, int]]:
    """Their blocks of a stage: our attention (or None) and FFN as name prefixes, and their index."""
    attention, index, flat = None, 0, False
    for i, block in enumerate(architecture.stages[stage].blocks):
        ours = f"stages.{stage}.blocks.{i}"
        if str(block) == "attention":
            attention = ours
            if is_v1(architecture) and not flat:
                flat, index = True, index + 1  # their flatten module takes an index of its own (pitfall 16)
            continue
        yield attention, ours, index
        attention, index = None, index + 1


def _conv_norms(ours: str, theirs: str, layers: str, conv: str, norm: str) -> Pairs:
    for layer in layers.split():
        yield f"{ours}.{layer}.conv", f"{theirs}.{layer}.{conv}"
        yield f"{ours}.{layer}.norm", f"{theirs}.{layer}.{norm}"


def _plain(ours: str, theirs: str, layers: str) -> Pairs:
    for layer in layers.split():
        yield f"{ours}.{layer}", f"{theirs}.{layer}"


def _first_scale(attention: str | None, ffn: str) -> str:
    return f"{attention}.scale.gamma" if attention else f"{ffn}.mixer_scale.gamma"


# --- official

# In the order of registration, which is not that of execution (pitfall 3).
_OFFICIAL_MLP = {
    "fc1.conv": "fc1",
    "fc2.conv": "fc2",
    "mid.conv": "mid",
    "mid.norm": "mid_norm",
    "fc1.norm": "norm1",
    "fc2.norm": "norm2",
}


def _official(architecture: Architecture) -> Pairs:
    for ours, theirs in (("conv1.conv", 0), ("conv1.norm", 1), ("conv2.conv", 3), ("conv2.norm", 4)):
        yield f"stem.{ours}", f"patch_embed.{theirs}"
    for j in range(4):
        if j > 0:
            ours, theirs = f"stages.{j}.downsample", f"network.{2 * j - 1}"
            attends = architecture.design.downsampling[j - 1] != "conv"
            yield f"{ours}.bias.table", f"{theirs}.attn.attention_biases"
            yield f"{ours}.q_local", f"{theirs}.attn.q.local.0"
            yield f"{ours}.q.conv", f"{theirs}.attn.q.proj.0"
            yield f"{ours}.q.norm", f"{theirs}.attn.q.proj.1"
            yield from _conv_norms(ours, f"{theirs}.attn", "k v v_local", "0", "1")
            yield from _conv_norms(ours, f"{theirs}.attn", "proj", "1", "2")  # 0 is the GELU
            yield f"{ours}.conv.conv", f"{theirs}.conv" if attends else f"{theirs}.proj"
            yield f"{ours}.conv.norm", f"{theirs}.bn" if attends else f"{theirs}.norm"
        for attention, ffn, index in _units(architecture, j):
            theirs = f"network.{2 * j}.{index}"
            yield _first_scale(attention, ffn), f"{theirs}.layer_scale_1"
            yield f"{ffn}.scale.gamma", f"{theirs}.layer_scale_2"
            if attention:
                yield f"{attention}.norm", f"{theirs}.norm1"
                mixer = f"{theirs}.token_mixer"
                yield f"{attention}.bias.table", f"{mixer}.attention_biases"
                yield from _conv_norms(attention, mixer, "stride_conv q k v v_local", "0", "1")
                yield from _plain(attention, mixer, "talking_head1 talking_head2 qkv proj")
                yield from _conv_norms(attention, mixer, "proj", "1", "2")
            yield f"{ffn}.norm", f"{theirs}.norm2"
            yield from _plain(ffn, f"{theirs}.mlp", "fc1 fc2")  # linears
            for ours, layer in _OFFICIAL_MLP.items():
                yield f"{ffn}.{ours}", f"{theirs}.mlp.{layer}"
    yield from (("norm", "norm"), ("head", "head"), ("head_dist", "dist_head"))


# --- timm


def _timm(architecture: Architecture) -> Pairs:
    v1 = is_v1(architecture)
    for layer in ("conv1", "conv2"):
        yield f"stem.{layer}.conv", f"stem.{layer}" if v1 else f"stem.{layer}.conv"
        yield f"stem.{layer}.norm", f"stem.{layer.replace('conv', 'norm')}" if v1 else f"stem.{layer}.bn"
    for j in range(4):
        if j > 0:
            theirs = f"stages.{j}.downsample"
            yield f"{theirs}.conv.conv", f"{theirs}.conv" if v1 else f"{theirs}.conv.conv"
            yield f"{theirs}.conv.norm", f"{theirs}.norm" if v1 else f"{theirs}.conv.bn"
            yield f"{theirs}.bias.table", f"{theirs}.attn.attention_biases"
            yield f"{theirs}.q_local", f"{theirs}.attn.q.local"
            yield from _conv_norms(theirs, f"{theirs}.attn", "q", "proj.conv", "proj.bn")
            yield from _conv_norms(theirs, f"{theirs}.attn", "k v v_local proj", "conv", "bn")
        for attention, ffn, index in _units(architecture, j):
            theirs = f"stages.{j}.blocks.{index}"
            if attention:
                yield f"{attention}.norm", f"{theirs}.norm1"
                mixer = f"{theirs}.token_mixer"
                yield f"{attention}.bias.table", f"{mixer}.attention_biases"
                yield from _conv_norms(attention, mixer, "stride_conv q k v v_local", "conv", "bn")
                yield from _plain(attention, mixer, "talking_head1 talking_head2 qkv proj")
                yield from _conv_norms(attention, mixer, "proj", "conv", "bn")
            yield _first_scale(attention, ffn), f"{theirs}.ls1.gamma"
            yield f"{ffn}.norm", f"{theirs}.norm2"
            if v1:
                for i in (1, 2):
                    yield f"{ffn}.fc{i}", f"{theirs}.mlp.fc{i}"
                    yield f"{ffn}.fc{i}.conv", f"{theirs}.mlp.fc{i}"
                    yield f"{ffn}.fc{i}.norm", f"{theirs}.mlp.norm{i}"
            else:
                yield from _conv_norms(ffn, f"{theirs}.mlp", "fc1 mid fc2", "conv", "bn")
            yield f"{ffn}.scale.gamma", f"{theirs}.ls2.gamma"
    yield from (("norm", "norm"), ("head", "head"), ("head_dist", "head_dist"))
