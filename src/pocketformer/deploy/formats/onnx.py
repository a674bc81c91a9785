"""ONNX files, by either of torch's exporters."""

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch import nn

from pocketformer.errors import WorkError

NAME, COMPANION, RUNTIME = "onnx", None, "onnxruntime"
PRECISIONS = ("float32", "int8")
# From 20 on, GELU is one operator. In older opsets the two exporters spell it differently, and ONNX Runtime
# recognises only one of them: S0 by the dynamo exporter at opset 18 takes 1.49 times as long.
OPSET = 20


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """By the TorchScript-based exporter, in a tenth of the other one's time. ONNX Runtime's optimised graph,
    and its speed, are the same."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), _one_thread():
        warnings.simplefilter("ignore")  # that exporter is deprecated, and warns of each fixed shape
        torch.onnx.export(
            module,
            (example,),
            buffer,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamo=False,
        )
    path.write_bytes(buffer.getbuffer())


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
    with warnings.catch_warnings(), torch.no_grad(), _one_thread(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
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
        except torch.onnx.errors.OnnxExporterError as error:
            first = str(error).strip().splitlines()[0]
            raise WorkError(f"export refused: PyTorch's ONNX exporter rejects this network ({first})") from None
        program.save(str(path))
    if precision == "int8":
        _quantise(path, calibration)
    _check(path)


def _quantise(path: Path, calibration: torch.Tensor) -> None:
    """Post-training quantisation of an ONNX file, in place.

    Activations unsigned: with signed ones S0 takes 1.6 times as long as in float32, with unsigned ones 0.95
    times. Adding up and attention stay in float32: quantised, they make S0 no faster and the error five times
    as large.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder, _silent_log():
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


@contextmanager
def _silent_log() -> Iterator[None]:
    """Without the quantiser's advice, which has been followed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tracing runs many tiny operators; where other processes keep the cores busy, handing them to threads
    takes several times as long as computing them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise WorkError(f"export refused: not a valid ONNX model ({first})") from None


def describe(path: Path) -> str:
    """The opset."""
    model = onnx.load(str(path), load_external_data=False)
    return f"ONNX opset {next(o.version for o in model.opset_import if o.domain == '')}"
