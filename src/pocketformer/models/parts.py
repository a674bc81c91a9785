"""Which tensors of a file are a network's, whatever keys and prefixes programs put around them."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pocketformer.errors import UserError
from pocketformer.models.pickles import Placeholder

# Where training programs keep weights, the likelier ones first; and what averages of them, or who taught them, are
# called.
_USUAL = ("model", "state_dict", "net", "network", "module", "params", "weights", "student", "backbone", "encoder")
_AVERAGED = re.compile(r"(.*_)?(ema|swa|averaged?|avg|momentum|teacher|target|shadow)(_.*)?|ema.*")
# What stands beside a network in one module: losses, metrics, teachers, and what profilers leave in each layer.
_BESIDE = re.compile(
    r"((.*_)?(criterion|criterions|loss|losses|metrics?|acc|accuracy|auroc|f1|precision|recall|confmat|confusion_matrix)"
    r"(_.*)?|loss.*|teacher.*|ema.*|.*_ema|mixup.*|normali[sz]er?|pixel_mean|pixel_std|mean|std)(\..*)?"
    r"|(.*\.)?(total_ops|total_params|n_averaged|__.*__)"
)
_LONGEST = 1000  # characters of a name that may be a network's
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # inside of names, of single layers


@dataclass(frozen=True)
class Part:
    """A network's tensors, by their names in it; and what was passed over, in sentences."""

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()


def flat(value: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of nested dictionaries by their dotted names; and of each name how the dictionary's begin."""
    tensors: dict[str, torch.Tensor] = {}
    homes: dict[str, str] = {}
    stack, seen = [("", value)], set()
    while stack:
        home, found = stack.pop()
        found = found.entries if isinstance(found, Placeholder) else found
        if not isinstance(found, Mapping) or id(found) in seen:
            continue
        seen.add(id(found))
        for key, inner in found.items():
            key = str(key) if isinstance(key, int) and abs(key) < 2**64 else key
            if not isinstance(key, str) or len(name := home + key) > _LONGEST:  # no network's
                continue
            if isinstance(inner, torch.Tensor):
                tensors[name], homes[name] = inner, home
            else:
                stack.append((f"{name}.", inner))
    return tensors, homes


def plain_names(names: Iterable[str]) -> list[str]:
    """Without what compilation and sharding put into names; the distillation head is `head_dist` throughout."""
    names = list(names)
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    bare = bare if len(set(bare)) == len(names) else names  # else two networks in one
    return [re.sub(r"(^|\.)dist_head\.", r"\1head_dist.", name) for name in bare]


def count(tensors: Collection[str], wanted: Collection[str]) -> Counter[str]:
    """How many of the wanted names there are behind each prefix, which ends in a dot unless it is empty."""
    votes: Counter[str] = Counter()
    for name in tensors:
        pieces = name.split(".")
        for i in range(len(pieces)):
            if ".".join(pieces[i:]) in wanted:
                votes[".".join([*pieces[:i], ""])] += 1
    return votes


def averaged_only(tensors: Mapping[str, torch.Tensor], path: Any) -> dict[str, torch.Tensor]:
    """What lies under names of averaged weights."""
    found = {name: tensor for name, tensor in tensors.items() if _averages(name)}
    if not found:
        raise UserError(f"{path} holds no averaged weights (as model_ema)")
    return found


def choose(votes: Counter[str], tensors: Mapping[str, torch.Tensor], path: Any) -> str:
    """The prefix of the weights meant: those of training, not their average, where there are both."""
    best = max(votes.values(), default=0)
    rivals = [prefix for prefix, found in votes.items() if found >= 0.9 * best]
    least = min(map(_averages, rivals), default=0)
    pool = sorted((prefix for prefix in rivals if _averages(prefix) == least), key=_rank)
    if (
        len(pool) > 1
        and _rank(pool[0])[0] == _rank(pool[1])[0] == len(_USUAL)
        and not _equal(pool[0], pool[1], tensors)
    ):
        names = " and ".join(prefix.rstrip(".") or "bare" for prefix in pool[:2])
        raise UserError(f"{path} holds several networks ({names}): save the state dict of the one that is meant")
    return pool[0] if pool else ""


def take(prefix: str, votes: Counter[str], tensors: Mapping[str, torch.Tensor], homes: Mapping[str, str]) -> Part:
    """The tensors behind a prefix, and what of the same dictionary, or as good, was left."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    home = next((homes.get(name, "") for name in tensors if name.startswith(prefix)), "")
    home = home if prefix.startswith(home) else ""
    notes, label = [], prefix.removeprefix(home).rstrip(".") or prefix.rstrip(".")
    label = "backbone" if label.endswith("backbone") else label
    others = [
        p
        for p, found in votes.items()
        if found >= 0.9 * votes[prefix] and p != prefix and not _equal(p, prefix, tensors)
    ]
    averaged = [p for p in others if _averages(p) > _averages(prefix)]
    if averaged:
        names = ", ".join(_shown(p) for p in averaged)
        notes.append(
            f"the file holds several sets of weights: taken was {_shown(prefix) or 'the plain one'}, not {names}"
        )
    if prefix != home:
        beside = [n.removeprefix(home) for n in tensors if homes.get(n, "") == home and not n.startswith(prefix)]
        beside = [n for n in beside if not any((home + n).startswith(p) for p in averaged) and not is_beside(n)]
        if parts := dict.fromkeys(name.split(".")[0] for name in beside):
            notes.append(f"of the file only its {label} was taken, not {first(parts)}")
    return Part(inside, tuple(notes))


def is_beside(name: str) -> bool:
    """Whether a tensor that the network does not have is one that programs keep beside a network's."""
    return _BESIDE.fullmatch(name) is not None


def adapted(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """The first convolution's weight (C, c, k, k) for images of another number of channels: summed for one, else
    repeated and scaled, so that a grey image gives what it gave (timm's `adapt_input_conv`, for any c)."""
    given = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-channels // given), 1, 1)[:, :channels]
    return (repeated * (given / channels)).to(weight.dtype)


def first(names: Iterable[Any], count: int = 3) -> str:
    """The first few of some names, to be told to a person."""
    names = [shown(str(name)) for name in names]
    return ", ".join(names[:count]) + (", …" if len(names) > count else "") if names else "none"


def shown(name: str) -> str:
    """A name out of a file as a person's terminal may get it."""
    return (name if name.isprintable() else ascii(name))[:100]


def _shown(prefix: str) -> str:
    return shown(prefix.rstrip("."))


def _averages(prefix: str) -> int:
    """How many pieces of a name say that it is of averaged weights."""
    return sum(_AVERAGED.fullmatch(piece) is not None for piece in prefix.split("."))


def _rank(prefix: str) -> tuple[int, int, str]:
    pieces = prefix.split(".")[:-1]
    place = _USUAL.index(pieces[-1]) if pieces and pieces[-1] in _USUAL else len(_USUAL) if pieces else -1
    return place, len(pieces), prefix


def _equal(one: str, other: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether two prefixes stand for equal tensors."""
    a, b = ({n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in (one, other))
    shared = a.keys() & b.keys()
    return bool(shared) and all(a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in shared)
