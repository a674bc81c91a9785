"""What papers print of networks on ImageNet-1K: V2's Table 2, and which networks of timm are its peers, as data."""

import csv
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pocketformer.architecture.published import NAMES
from pocketformer.architecture.space import SearchSpace

_FOLDER = os.path.dirname(__file__)
DEVICES = ("pixel6", "iphone12", "a100")
UNIT = "MobileNetV2x1.0"  # the row whose latency is the unit (contract 6.8)
LARGEST = "Supernet"  # the row of the search space's largest member


@dataclass(frozen=True)
class Result:
    """One row; None where the table has a blank. Counts are in the convention of whoever reported them.

    Latencies in ms: iPhone 12 (NPU, Core ML) and Pixel 6 (CPU, XNNPACK, all activations ReLU) of one image, A100
    (TensorRT) of 64. `epochs` and `top1` (percent) hold one entry a training.
    """

    name: str
    kind: str
    parameters: float | None  # millions
    gmacs: float | None
    iphone12: float | None
    pixel6: float | None
    a100: float | None
    mes: float | None
    epochs: tuple[int, ...]
    top1: tuple[float, ...]

    @property
    def network(self) -> str | None:
        """Our name of the network, if it is one of ours."""
        name = self.name.lower().replace("-", "_")
        return name if name in NAMES else None

    def ratio(self, device: str, unit: "Result") -> float | None:
        """The printed latency on one of `DEVICES` over that of the row `unit`."""
        own, base = getattr(self, device), getattr(unit, device)
        return own / base if own and base else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "epochs": list(self.epochs), "top1": list(self.top1)}


@dataclass(frozen=True)
class Peer:
    """A network of timm that V2's Table 2 lists, or that is newer: then `result` is None, and top-1 is `source`'s.

    `resolution` is the input size in px that the printed cost and accuracy belong to; MobileViT-XS is at the 224 px
    of the table's 0.7 GMACs. The table's row "FBNet-V3" has size, cost and accuracy of FBNet-C, which stands for it;
    its DeiTs are the distilled ones. Those without a network here (EdgeViT, PVT v1, CSwin, …) are not in timm.
    """

    name: str
    timm: str
    resolution: int
    kind: str
    top1: tuple[float, ...]
    source: str
    result: Result | None


def published_results() -> tuple[Result, ...]:
    """All rows of V2's Table 2: ours and their peers, in the table's order."""
    return tuple(map(_result, _rows("imagenet_models.csv")))


def peers() -> tuple[Peer, ...]:
    """The table's rows that timm has, in the table's order, and newer networks by year."""
    results, found = {result.name: result for result in published_results()}, []
    for row in _rows("peers.csv"):
        result = results.get(row["name"])
        kind, top1, source = (
            (result.kind, result.top1, "arXiv 2212.08059")
            if result
            else (row["type"], _each(row["top1"], float), row["source"])
        )
        found.append(Peer(row["name"], row["timm"], int(row["resolution"]), kind, top1, source, result))
    return tuple(found)


def space_costs(space: SearchSpace, num_classes: int = 1000, distilled: bool = True) -> dict[str, Any]:
    """Parameters and MACs of the smallest subnet of the training and of the largest; of the paper's space also what
    the paper prints ("paper"): its depths, which it does not print, differ somewhere from ours (contract 6.3)."""
    found: dict[str, Any] = {
        name: {
            "parameters": member.parameters(num_classes, distilled),
            "macs": member.macs(num_classes=num_classes, distilled=distilled),
        }
        for name, member in (("smallest", space.smallest), ("largest", space.largest))
    }
    if space.largest == SearchSpace.named("efficientformerv2").largest:
        (printed,) = (row for row in published_results() if row.name == LARGEST)
        found["paper"] = {"parameters": round(printed.parameters * 1e6), "macs": round(printed.gmacs * 1e9)}
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with open(os.path.join(_FOLDER, name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _each(text: str, kind: Callable) -> tuple:
    return tuple(map(kind, filter(None, text.split("/"))))


def _result(row: dict[str, str]) -> Result:
    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    return Result(
        name=row["model"],
        kind=row["type"],
        parameters=number("params_m"),
        gmacs=number("gmacs"),
        iphone12=number("latency_ms_iphone12_npu_coreml"),
        pixel6=number("latency_ms_pixel6_cpu_xnnpack_relu"),
        a100=number("latency_ms_a100_tensorrt_batch64"),
        mes=number("mes"),
        epochs=_each(row["epochs"], int),
        top1=_each(row["top1"], float),
    )
