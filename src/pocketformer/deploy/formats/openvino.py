"""OpenVINO's intermediate representation: an .xml file and its weights in a .bin file beside it."""

import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import openvino
import torch
from torch import nn

from pocketformer.deploy.efficientformerv2 import interpolating
from pocketformer.deploy.facts import Facts
from pocketformer.deploy.formats import onnx
from pocketformer.deploy.quiet import converting
from pocketformer.errors import UserError, first_line
from pocketformer.runtimes.openvino import PRECISION_INFO

NAME, COMPANION = "openvino", ".bin"
PRECISIONS = ("float32", "float16", "bfloat16", "int8")


@converting("OpenVINO")
def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Through ONNX: the same graph as from PyTorch directly, in a fraction of the time."""
    _save(_converted(module, example, quick=True), path, "float32")


@converting("OpenVINO")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """float16 and bfloat16 are what the runtime computes in; weights are stored in float16 then.

    int8: convolutions and linears, by NNCF, calibrated on `calibration` (N, C, H, W).
    """
    model = _converted(module, example, dynamic_batch=dynamic_batch)
    model = _quantised(model, calibration) if precision == "int8" else model
    for name, value in ({} if facts is None else facts.metadata()).items():
        model.set_rt_info(value, [PRECISION_INFO[0], name])
    for name, value in ({} if facts is None else _model_info(facts)).items():
        model.set_rt_info(value, ["model_info", name])
    _save(model, path, precision)


def _model_info(facts: Facts) -> dict[str, str]:
    """What OpenVINO's model_api and DL Streamer read, as far as they have words for it: values of 0 to 255, lists with
    spaces between, and none within the names of classes."""
    info = {"model_type": {"classification": "Classification", "semantic segmentation": "Segmentation"}[facts.task]}
    if facts.classes is not None:
        info["labels"] = " ".join("_".join(name.split()) for name in facts.classes)
    info["resize_type"] = "crop" if facts.framing == "crop" else "standard"
    info["reverse_input_channels"] = "True"  # they hand over BGR
    if not facts.raw:
        info["mean_values"] = " ".join(f"{255 * value:.9g}" for value in facts.mean)
        info["scale_values"] = " ".join(f"{255 * value:.9g}" for value in facts.std)
    return info


def read_metadata(path: Path) -> dict[str, str]:
    """From the head of the .xml alone. Raises `UserError` for what is no IR."""
    try:
        found = ElementTree.parse(path).getroot().find(f"rt_info/{PRECISION_INFO[0]}")
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no OpenVINO IR ({first_line(error)})") from None
    return {} if found is None else {entry.tag: entry.get("value", "") for entry in found}


def _quantised(model: openvino.Model, calibration: torch.Tensor) -> openvino.Model:
    """Post-training quantisation.

    Matrix products and additions stay in float32: as fast, more exact, and OpenVINO 2026.4 cannot compile some
    of them in int8. No correction of biases: the fast one doubled the error of a small trained network.
    Ranges hold every value that was seen: NNCF's own are means over the images, which cut off dark and bright ones.
    """
    try:
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ModuleNotFoundError:
        raise UserError("int8 needs nncf, which is not installed: pip install 'pocketformer[openvino]'") from None
    return nncf.quantize(
        model,
        nncf.Dataset([image.numpy() for image in calibration.split(1)]),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(types=["MatMul", "Add"], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=True, activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        ),
    )


def _converted(module: nn.Module, example: torch.Tensor, quick: bool = False, dynamic_batch: bool = False):
    module = interpolating(module)  # 2 to 7 % of a network faster there (`benchmarks/deployed.py fast`)
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        between = Path(folder) / "model.onnx"
        if quick:
            onnx.write_quick(module, example, between, onnx.NEWEST)
        else:
            onnx.write(module, example, between, dynamic_batch=dynamic_batch, opset=onnx.NEWEST)
        # Not `convert_model`, which takes seven times as long for the same and reports to its makers.
        return openvino.Core().read_model(between)


def _save(model: openvino.Model, path: Path, precision: str) -> None:
    model.set_rt_info(precision, PRECISION_INFO)
    openvino.save_model(model, str(path), compress_to_fp16=precision in ("float16", "bfloat16"))


def describe(path: Path) -> str:
    """The version of the representation."""
    with open(path, encoding="utf-8") as file:
        version = re.search(r'<net [^>]*version="(\d+)"', file.read(4096))
    return f"OpenVINO IR {version[1]}"
