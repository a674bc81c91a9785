"""A tiny MetaPath space (V1), its supernet, and every member by brute force. Shared by the tests of both."""

import itertools
from functools import cache

import torch

from perturbed import perturb
from pocketformer import MetaPathSupernet, SearchSpace, Selection

YAML = """
name: tiny-v1
metapath: true
design:
  resolution: 16
  stem_strides: [2, 1]
  stage_strides: [1, 2, 2]
  stem_activation: relu
  downsampling: [conv, conv, conv]
  token_mixer: pool
  attention: tokens
  attention_strides: [1, 1, 1, 1]
  local_value: false
  talking_heads: false
  heads: 2
  key_dim: 4
  value_dim: 6
expansions: [2]
stages:
  - {depth: 2, widths: [4, 6]}
  - {depth: 1, widths: [6, 8]}
  - {depth: 2, widths: [8, 10, 12], attention: true}
  - {depth: 2, widths: [12, 16], attention: true}
"""
TINY = SearchSpace.from_yaml(YAML, "tiny.yaml")
DEPTHS, ATTENTION = (2, 1, 2, 2), (False, False, True, True)


def perturbed_supernet(classes=7, **options):
    """With any alpha, and everything else away from where it begins."""
    return perturb(MetaPathSupernet(TINY, classes, **options))


def images(count, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def slots(kinds):
    """The slots of each stage of ("4D", "3D" or "I" of each place)."""
    kept, rest = [], iter(kinds)
    for depth, attention in zip(DEPTHS, ATTENTION, strict=True):
        found = []
        for place in range(depth):
            kind = next(rest)
            if not attention:
                found += [place] if kind == "4D" else []
            else:
                found += {"4D": [2 * place + 1], "3D": [2 * place, 2 * place + 1], "I": []}[kind]
        kept.append(tuple(found))
    return tuple(kept)


def member(kinds, widths=(6, 8, 12, 16)):
    kept = slots(kinds)
    counts = [sum(kind != "I" for kind in kinds[a:b]) for a, b in itertools.pairwise((0, 2, 3, 5, 7))]
    return Selection(TINY, widths, kept, tuple((2,) * n for n in counts))


def is_efficientformer(kinds):
    """Each stage has a block, and MB3D are the last of them."""
    stages = [kinds[a:b] for a, b in itertools.pairwise((0, 2, 3, 5, 7))]
    if not all(any(kind != "I" for kind in stage) for stage in stages):
        return False
    blocks = [kind for kind in kinds if kind != "I"]
    return blocks == sorted(blocks, reverse=True)  # "4D" before "3D"


@cache
def all_kinds():
    """What each place of a member is: ("4D", "I", "4D", "3D", …)."""
    offers = [("4D", "I")] * 3 + [("4D", "3D", "I")] * 4
    return [kinds for kinds in itertools.product(*offers) if is_efficientformer(kinds)]
