"""Which networks a benchmark times: those that a person names, the papers' own, and their peers."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import timm

from pocketformer import files
from pocketformer.architecture import NAMES, Architecture, SearchSpace
from pocketformer.architecture.design import Grid
from pocketformer.architecture.results import LARGEST, UNIT, Peer, Result, peers, published_results
from pocketformer.deploy import format_by_name
from pocketformer.devices.candidates import write_network
from pocketformer.devices.peers import write_peer
from pocketformer.errors import UserError
from pocketformer.pipelines.trained import load_architecture

CLASSES = 1000
UNIT_SIZE = (224, 224)  # px; of the table's MobileNetV2
_TIMM = "timm:"


@dataclass(frozen=True)
class Entrant:
    """A network to be timed: an architecture of ours, a network of timm, or an exported file.

    `resolution` is (height, width) in px, None for a file, which knows its own. `kind` is that of V2's Table 2.
    `classes` and `distilled` (two heads while it learns): the published networks' unless it is a trained one's folder.
    """

    name: str
    resolution: Grid | None
    architecture: Architecture | None = None
    timm: str | None = None
    file: Path | None = None
    kind: str = ""
    top1: tuple[float, ...] = ()
    result: Result | None = field(default=None, compare=False)
    classes: int = CLASSES
    distilled: bool = True

    def write(self, format: ModuleType, path: Path, batch: int, relu: bool) -> dict:
        """Writes the deployed graph with random weights; its costs, in the papers' sense (all heads, one image)."""
        if self.architecture is None:
            found = write_peer(format, self.timm, self.classes, self.resolution, path, batch, relu)
            return {"parameters": found.parameters, "macs": found.macs, "activations": list(found.activations)}
        architecture = self.architecture
        if relu:
            architecture = architecture.with_design(activation="relu", stem_activation="relu")
        write_network(format, architecture, self.classes, self.resolution, path, batch)
        design = architecture.design
        kinds = {*design.activations, design.activation_of_stem} - {"relu"}
        heads = {"num_classes": self.classes, "distilled": self.distilled}
        counts = {"parameters": architecture.parameters(**heads), "macs": architecture.macs(**heads)}
        return {**counts, "activations": sorted(kinds)}


def named(text: str) -> Entrant:
    """A published name, an architecture, an exported file, or a network of timm (`timm:NAME`, or its bare name).

    Raises `UserError` with the nearest names for what is none of them.
    """
    path = Path(text)
    if format_by_name(path):
        return Entrant(text, None, file=path)
    if text.startswith(_TIMM) or (text not in NAMES and not path.exists() and timm.is_model(text)):
        return _of_timm(text.removeprefix(_TIMM), text)
    if text in NAMES or path.exists() or path.suffix == ".json" or "/" in text:
        results = {result.network: result for result in published_results()}
        entrant = _of_ours(text, load_architecture(text), results.get(text))
        return replace(entrant, **_heads_of(path)) if path.is_dir() else entrant
    raise UserError(f"no network {text!r}; did you mean {_nearest(text, (*NAMES, *timm.list_models()))}?")


def _heads_of(folder: Path) -> dict:
    """`classes` and `distilled` of a trained network's folder; nothing of an architecture alone."""
    config = folder / "config.json"
    known = files.read_json(config, "configuration") if config.is_file() else None
    if not isinstance(known, dict) or not isinstance(known.get("num_classes"), int):
        return {}
    return {"classes": known["num_classes"], "distilled": bool(known.get("distilled", False))}


def table() -> list[Entrant]:
    """V2's Table 2 in its order (ours, the search space's largest member, the peers that timm has), then newer ones."""
    found, newer = {peer.name: _of_peer(peer) for peer in peers()}, [p.name for p in peers() if p.result is None]
    rows = []
    for result in published_results():
        if result.network:
            rows.append(_of_ours(result.network, Architecture.named(result.network), result))
        elif result.name == LARGEST:
            largest = SearchSpace.named("efficientformerv2").largest
            rows.append(_of_ours("efficientformerv2 space, largest", largest, result))
        elif result.name in found:
            rows.append(found[result.name])
    return rows + [found[name] for name in newer]


def unit(size: Grid) -> Entrant:
    """MobileNetV2 x1.0, the unit of latency (contract 6.8), for images of (height, width) px."""
    peer = next(peer for peer in peers() if peer.name == UNIT)
    if size == UNIT_SIZE:
        return _of_peer(peer)
    return Entrant(f"{UNIT} at {size[0]}x{size[1]} px", size, timm=peer.timm, kind=peer.kind)


def _of_ours(name: str, architecture: Architecture, result: Result | None) -> Entrant:
    kind, top1 = (result.kind, result.top1) if result else ("", ())
    return Entrant(name, architecture.design.resolution, architecture, kind=kind, top1=top1, result=result)


def _of_peer(peer: Peer) -> Entrant:
    size = (peer.resolution, peer.resolution)
    return Entrant(peer.name, size, timm=peer.timm, kind=peer.kind, top1=peer.top1, result=peer.result)


def _of_timm(name: str, text: str) -> Entrant:
    for peer in peers():
        if name == peer.timm:
            return _of_peer(peer)
    if not timm.is_model(name):
        raise UserError(f"timm has no network {name!r}; did you mean {_nearest(name, timm.list_models())}?")
    size = timm.get_pretrained_cfg(name)
    return Entrant(text, tuple(size.input_size[1:]) if size else UNIT_SIZE, timm=name)


def _nearest(name: str, known: Iterable[str]) -> str:
    return " or ".join(difflib.get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.4) or NAMES)
