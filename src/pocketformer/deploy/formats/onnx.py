"""ONNX files, by either of torch's exporters."""

import io
import tempfile
from pathlib import Path

import onnx
import torch
from torch import nn

from pocketformer.deploy.quiet import converting

NAME, COMPANION = "onnx", None
PRECISIONS = ("float32", "int8")
# From 20 on, GELU is one operator. In older opsets the two exporters spell it differently, and ONNX Runtime
# recognises only one of them: S0 by the dynamo exporter at opset 18 takes 1.49 times as long.
OPSET = 20


@converting("PyTorch's ONNX exporter")
def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """By the TorchScript-based exporter, in a tenth of the other one's time. ONNX Runtime's optimised graph,
    and its speed, are the same."""
    buffer = io.BytesIO()
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(module, (example,), buffer, opset_version=OPSET, dynamo=False, **names)
    path.write_bytes(buffer.getbuffer())


@converting("PyTorch's ONNX exporter")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
) -> None:
    """By the exporter built on torch.export; with `dynamic_batch` for any number of images.

    int8: convolutions and linears, calibrated on `calibration` (N, C, H, W).
    """
    shapes = None
    if dynamic_batch:  # with one example, torch.export would take the batch for a constant
        example, shapes = torch.cat([example, example]), ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        module,
        (example,),
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    program.save(str(path))
    if precision == "int8":
        _quantise(path, calibration)
    onnx.checker.check_model(str(path), full_check=True)


def _quantise(path: Path, calibration: torch.Tensor) -> None:
    """Post-training quantisation of an ONNX file, in place.

    Activations unsigned: with signed ones S0 takes 1.6 times as long as in float32, with unsigned ones 0.95
    times. Adding up and attention stay in float32: quantised, they make S0 no faster and the error five times
    as large.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quantization.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Images(calibration),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


class _Images:
    """Calibration images one at a time, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, images: torch.Tensor):
        self._images = iter(images.split(1))

    def get_next(self) -> dict | None:
        image = next(self._images, None)
        return None if image is None else {"image": image.numpy()}


def describe(path: Path) -> str:
    """The opset."""
    model = onnx.load(str(path), load_external_data=False)
    return f"ONNX opset {next(o.version for o in model.opset_import if o.domain == '')}"
