"""What the papers print of networks on ImageNet-1K: size, cost, accuracy, latency (V2 Table 2, carried as data)."""

import csv
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pocketformer.architecture.published import NAMES

_FILE = os.path.join(os.path.dirname(__file__), "imagenet_models.csv")


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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "epochs": list(self.epochs), "top1": list(self.top1)}


def published_results() -> tuple[Result, ...]:
    """All rows: ours and their peers, in the table's order."""
    with open(_FILE, encoding="utf-8", newline="") as file:
        return tuple(_result(row) for row in csv.DictReader(file))


def _result(row: dict[str, str]) -> Result:
    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    def each(column: str, kind: Callable) -> tuple:
        return tuple(map(kind, filter(None, row[column].split("/"))))

    return Result(
        name=row["model"],
        kind=row["type"],
        parameters=number("params_m"),
        gmacs=number("gmacs"),
        iphone12=number("latency_ms_iphone12_npu_coreml"),
        pixel6=number("latency_ms_pixel6_cpu_xnnpack_relu"),
        a100=number("latency_ms_a100_tensorrt_batch64"),
        mes=number("mes"),
        epochs=each("epochs", int),
        top1=each("top1", float),
    )
