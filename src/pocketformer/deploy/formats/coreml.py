"""Core ML packages (.mlpackage, a folder) for iOS 16 and macOS 13 or later. They can be run on macOS alone."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import nn

from pocketformer.errors import WorkError

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of each package that is newer than it knows

import coremltools as ct  # noqa: E402 (what it says on import is silenced above)

NAME, COMPANION, RUNTIME = "coreml", None, "coreml" if sys.platform == "darwin" else None
# What the file computes in; float16 is what the neural engines of phones run. Input and output stay float32.
PRECISIONS = ("float32", "float16")
_COMPUTED = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}
_TARGET = ct.target.iOS16


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """The same as `write`: no other way is quicker and gives the same graph."""
    write(module, example, path)


def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
) -> None:
    """For single images: with a batch of any size, Core ML leaves the neural engine, so that is refused."""
    if dynamic_batch:
        raise WorkError("export refused: Core ML packages are written for single images (no dynamic batch)")
    # A traced TorchScript module gives the same operators in two thirds of the time, but torch gives that up.
    with torch.no_grad(), _quiet():
        try:
            converted = ct.convert(
                torch.export.export(module, (example,)).run_decompositions({}),
                convert_to="mlprogram",
                inputs=[ct.TensorType("image", tuple(example.shape))],
                outputs=[ct.TensorType("logits")],
                minimum_deployment_target=_TARGET,
                compute_precision=_COMPUTED[precision],
                skip_model_load=True,  # loading is the runtime's
            )
        except Exception as error:  # torch.export and the converter raise many types
            raise WorkError(f"export refused: Core ML's converter rejects this network ({_reason(error)})") from None
        converted.save(str(path))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # concerns another runtime
    _check(path, example)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and the warnings about versions."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _main(path: Path):
    """Of a package: its specification and the operators of its one function."""
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    function = spec.mlProgram.functions["main"]
    return spec, function.block_specializations[function.opset].operations


def _check(path: Path, example: torch.Tensor) -> None:
    """What can be told anywhere: the package loads again, and has one input and one output as promised."""
    spec, _ = _main(path)
    found = [
        (port.name, tuple(port.type.multiArrayType.shape))
        for port in (*spec.description.input, *spec.description.output)
    ]
    if [name for name, _ in found] != ["image", "logits"] or found[0][1] != tuple(example.shape):
        raise WorkError(f"export refused: the Core ML package takes and returns {found}")


def describe(path: Path) -> str:
    """The oldest systems that run it, the number of its operators, and whether it was run."""
    _, operators = _main(path)
    count = sum(operator.type != "const" for operator in operators)
    run = "" if RUNTIME else "; not run here: Core ML runs on macOS only"
    return f"Core ML program of {count} operators for iOS 16 and macOS 13 or later{run}"
