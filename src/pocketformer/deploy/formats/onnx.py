"""ONNX files, by either of torch's exporters."""

import io
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
    """By the exporter built on torch.export; with `dynamic_batch` for any number of images."""
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
    _check(path)


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
