"""TensorRT engines (.engine) through ONNX. One runs on the kind of GPU and the version that it was built with."""

import copy
import tempfile
from pathlib import Path

import tensorrt as trt
import torch
from torch import nn

from pocketformer.deploy.facts import Facts
from pocketformer.deploy.formats import onnx
from pocketformer.deploy.quiet import converting
from pocketformer.errors import UserError, WorkError
from pocketformer.runtimes.tensorrt import Log

NAME, COMPANION = "tensorrt", None
PRECISIONS = ("float32", "float16")  # what is computed in; input and output stay float32


class _Half(nn.Module):
    """A network in float16 between float32 ends. From version 11 on, TensorRT takes precisions from the graph."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image.half()).float()


@converting("TensorRT")
def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Through ONNX by the quicker exporter."""
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        between = Path(folder) / "model.onnx"
        onnx.write_quick(module, example, between, onnx.NEWEST)
        path.write_bytes(_engine(between))


@converting("TensorRT")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """For single images. float32 is meant: without TF32, which drops 13 of its 23 bits before products."""
    if dynamic_batch:
        raise UserError("format tensorrt is for single images: it has no dynamic batch")
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        between = Path(folder) / "model.onnx"
        lowered = _Half(module).eval() if precision == "float16" else module
        onnx.write(lowered, example, between, opset=onnx.NEWEST)
        path.write_bytes(_engine(between))


def _engine(path: Path) -> bytes:
    """An ONNX file as a serialised engine. Raises `UserError` without a GPU, `WorkError` for what is rejected."""
    if not torch.cuda.is_available():
        raise UserError("format tensorrt needs an NVIDIA GPU, and PyTorch finds none here")
    log = Log()
    builder = trt.Builder(log)
    # Version 10 asks for it, 11 knows nothing else: every tensor has the type that the graph says.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    data = builder.build_serialized_network(network, config) if parser.parse_from_file(str(path)) else None
    if data is None:
        said = [parser.get_error(i).desc() for i in range(parser.num_errors)] + [log.error]
        first = (said[0].strip() or "no reason given").splitlines()[0]
        raise WorkError(f"export refused: TensorRT rejects this network ({first})")
    return bytes(data)


def describe(path: Path) -> str:
    """The version and the GPU that it was built with."""
    return f"TensorRT {trt.__version__} engine for {torch.cuda.get_device_name()}"
