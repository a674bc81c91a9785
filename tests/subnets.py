"""Supernets, search spaces as users write them, and which shared tensor a static network's is. Shared by the tests of
supernets."""

import torch

from perturbed import perturb
from pocketformer import SearchSpace, Supernet

# Another input size each, shape, strides, number of stages, kinds of attention and activations.
USERS = {
    "32px": """
name: 32px
design:
  resolution: 32
  stem_strides: [2, 1]
  stage_strides: [1, 2, 2]
  attention_strides: [1, 1, 2, 1]
  activation: [hardswish, relu, gelu, gelu]
  heads: 2
  key_dim: 4
  value_dim: 6
  downsampling_heads: 2
  downsampling_key_dim: 4
  downsampling_value_dim: 4
expansions: [0.5, 1, 3]
stages:
  - {depth: 1, widths: [6, 8]}
  - {depth: 2, widths: [8, 12]}
  - {depth: 2, widths: [12, 14, 16], attention: true}
  - {depth: 2, widths: [16, 20], attention: true}
smallest:
  - {width: 6, blocks: [ffn1]}
  - {width: 8, blocks: [ffn1]}
  - {width: 12, blocks: [attention, ffn1]}
  - {width: 16, blocks: [attention, ffn3]}
""",
    "96x64px": """
name: 96x64px
design:
  resolution: [96, 64]
  stem_strides: [2, 2]
  stage_strides: [2, 2, 1]
  downsampling: [conv, attention, dual-path]
  attention_strides: [1, 2, 2, 1]
  strided_attention: keys-values
  stem_activation: relu
  heads: 2
  key_dim: 4
  value_dim: 4
  downsampling_heads: 1
  downsampling_key_dim: 4
  downsampling_value_dim: 6
  talking_heads: false
expansions: [1, 2]
stages:
  - {depth: 2, widths: [4, 6]}
  - {depth: 1, widths: [6, 8], attention: true}
  - {depth: 2, widths: [8, 12], attention: true}
  - {depth: 1, widths: [12], attention: true}
""",
    "5 stages": """
name: 5 stages
design:
  resolution: 64
  stem_strides: [2, 1]
  stage_strides: [2, 2, 2, 2]
  downsampling: [conv, conv, attention, dual-path]
  attention_strides: [1, 1, 1, 2, 1]
  activation: [relu, relu, hardswish, gelu, gelu]
  heads: 2
  key_dim: 4
  value_dim: 4
  downsampling_heads: 2
  downsampling_key_dim: 4
  downsampling_value_dim: 4
expansions: [1, 2]
stages:
  - {depth: 1, widths: [4, 6]}
  - {depth: 1, widths: [6]}
  - {depth: 1, widths: [6, 8, 10], attention: true}
  - {depth: 2, widths: [8, 12], attention: true}
  - {depth: 1, widths: [12, 16], attention: true}
""",
}


def space_of(name):
    return SearchSpace.from_yaml(USERS[name], f"{name}.yaml") if name in USERS else SearchSpace.named(name)


def perturbed_supernet(name, num_classes=7, **options):
    return perturb(Supernet(space_of(name), num_classes, **options))


def images(space, n, seed=0):
    return torch.randn(n, 3, *space.resolution, generator=torch.Generator().manual_seed(seed))


def subnets(space, n):
    """Architectures and selections other than the default ones in turn."""
    return [space.sample(seed) if seed % 2 else space.sample_selection(seed) for seed in range(n)]


def shared_names(selection, static_names):
    """{static name: supernet name}, spelled out: which slot and which switch's norms a static tensor is from."""
    width = selection.widths
    prefixes = {"stem.": ("stem.", f"{width[0]}"), "head.": ("head.", ""), "head_dist.": ("head_dist.", "")}
    prefixes["norm."] = (f"norms.{width[-1]}.", "")
    for j in range(len(width)):
        prefixes[f"stages.{j}.downsample."] = (f"downsamples.{j - 1}.", f"{width[j - 1]}-{width[j]}")
        ratios = iter(selection.expansions[j])
        for i, slot in enumerate(selection.kept[j]):
            attention = selection.space.stages[j].is_attention(slot)
            switch = f"{width[j]}" if attention else f"{width[j]}x{next(ratios)}".replace(".", "_")
            prefixes[f"stages.{j}.blocks.{i}."] = (f"stages.{j}.{slot}.", switch)
    result = {}
    for name in static_names:
        (prefix,) = (p for p in prefixes if name.startswith(p))
        place, switch = prefixes[prefix]
        result[name] = place + name.removeprefix(prefix).replace(".norm.", f".norms.{switch}.")
    return result


def scattered(gradient, shared):
    """A static tensor's gradient at its slice of the shared tensor, zero elsewhere."""
    whole = torch.zeros_like(shared)
    whole[tuple(slice(n) for n in gradient.shape)] = gradient
    return whole
