"""ONNX files: writing one, and running one with ONNX Runtime on the processor."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pocketformer.errors import UserError, WorkError

OPSET = 17


def write_onnx(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Writes `module` as an ONNX file that takes inputs of exactly `example`'s shape, (B, C, H, W).

    The TorchScript-based exporter: a tenth of the other one's time, and an equally exact file.
    """
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


def check_onnx(path: Path) -> None:
    """Raises `WorkError` unless the file is a valid ONNX model."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise WorkError(f"export refused: not a valid ONNX model ({first})") from None


def open_onnx(path: Path, threads: int = 1):
    """An ONNX Runtime session of an ONNX file on the processor, with all graph optimisations.

    Raises `UserError` if the file is missing or is no model that the runtime can load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Threads that spin while they wait would slow down the other sessions of an interleaved measurement.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not Path(path).is_file():
        raise UserError(f"model file not found: {path}")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no base of their own
        raise UserError(f"ONNX Runtime cannot load {path}: {str(error).strip().splitlines()[0]}") from None


def run_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs the file: float32 (1, C, H, W) to float32 (1, num_classes)."""
    session = open_onnx(path)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]
