"""ONNX files, by either of torch's exporters."""

import copy
import io
import math
import tempfile
from pathlib import Path

import onnx
import torch
from onnx import version_converter
from torch import nn

from pocketformer.deploy.facts import Facts
from pocketformer.deploy.quiet import converting
from pocketformer.errors import UserError, first_line

NAME, COMPANION = "onnx", None
PRECISIONS = ("float32", "int8")
# ONNX Runtime 1.12 and TensorRT 8.6 read 17; 18 takes ONNX Runtime 1.14, 19 takes 1.15, 20 takes 1.17. In float32, with
# GELU spelt as `_Gelu` does, ONNX Runtime makes the same graph of all. In int8 it recognises the operator alone: S0
# takes 1.24 times float32's time in opset 17, and 0.85 times in 20.
OPSETS = (17, 18, 19, 20)
OPSET, NEWEST = 17, 20
_APART = "pocketformer.apart"  # a domain that the converter leaves alone


def default_opset(precision: str) -> int:
    """The oldest that costs no time."""
    return NEWEST if precision == "int8" else OPSET


class _Gelu(nn.Module):
    """GELU as ONNX Runtime and OpenVINO recognise it; as the newer exporter spells it they do not, and S0 takes 1.49
    times as long."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) * 0.5


def spelt(module: nn.Module, opset: int) -> nn.Module:
    """The module as it is to be exported: from opset 20 on GELU is an operator, before it is written out."""
    if opset >= 20:
        return module
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.GELU) and child.approximate == "none":
                setattr(part, name, _Gelu())
    return module


@converting("PyTorch's ONNX exporter")
def write_quick(module: nn.Module, example: torch.Tensor, path: Path, opset: int = OPSET) -> None:
    """By the TorchScript-based exporter, in a tenth of the other one's time. ONNX Runtime's optimised graph,
    and its speed, are the same."""
    buffer = io.BytesIO()
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(spelt(module, opset), (example,), buffer, opset_version=opset, dynamo=False, **names)
    path.write_bytes(buffer.getbuffer())


@converting("PyTorch's ONNX exporter")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
    opset: int | None = None,
) -> None:
    """By the exporter built on torch.export; with `dynamic_batch` for any number of images.

    int8: convolutions and linears, calibrated on `calibration` (N, C, H, W). `facts`: go into `metadata_props`. The
    IR version is the oldest that the opset allows.
    """
    opset, shapes = opset or default_opset(precision), None
    if dynamic_batch:  # with one example, torch.export would take the batch for a constant
        example, shapes = torch.cat([example, example]), ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        spelt(module, opset),
        (example,),
        opset_version=opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    onnx.save(_lowered(program.model_proto, opset), str(path))
    if precision == "int8":
        _quantise(path, calibration)
    finish(path, facts)


def _lowered(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The exporter starts at opset 18, whatever is asked for, and does not get below it."""
    if _opset(model) == opset:
        return model
    for node in model.graph.node:
        if node.op_type == "Split" and len(node.input) == 2:  # the same in both, but the converter knows no way back
            node.domain = _APART
    model.opset_import.append(onnx.helper.make_opsetid(_APART, 1))
    model = version_converter.convert_version(model, opset)
    for node in model.graph.node:
        if node.domain == _APART:
            node.domain = ""
    used = [given for given in model.opset_import if given.domain != _APART]
    del model.opset_import[:]
    model.opset_import.extend(used)
    for node in model.graph.node:  # which the converter leaves on reductions, and older ones do not know
        kept = [given for given in node.attribute if given.name != "noop_with_empty_axes"]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
    return model


def finish(path: Path, facts: Facts | None) -> None:
    """What a file gets whoever wrote it: facts, and the oldest IR version that its opset allows. Checked."""
    model = onnx.load(str(path))
    # The quantiser declares all sets of operators that it knows; an older runtime refuses those, used or not.
    used = [o for o in model.opset_import if o.domain in {"", *(node.domain for node in model.graph.node)}]
    kept = [onnx.helper.make_opsetid(o.domain, o.version) for o in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version = onnx.helper.find_min_ir_version_for([o for o in kept if o.domain == ""])
    if facts is not None:
        onnx.helper.set_model_props(model, facts.metadata())
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def read_metadata(path: Path) -> dict[str, str]:
    """Raises `UserError` for what is no ONNX file."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's
        raise UserError(f"{path} is no ONNX file ({first_line(error)})") from None
    return {entry.key: entry.value for entry in model.metadata_props}


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


def _opset(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain == "")


def describe(path: Path) -> str:
    """The opset."""
    return f"ONNX opset {_opset(onnx.load(str(path), load_external_data=False))}"
