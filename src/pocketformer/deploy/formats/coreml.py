"""Core ML packages (.mlpackage, a folder) for iOS 16 and macOS 13 or later. They can be run on macOS alone."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pocketformer.deploy.facts import Facts
from pocketformer.deploy.formats import runtime_of
from pocketformer.deploy.quiet import converting, quiet
from pocketformer.errors import UserError, WorkError, first_line

with quiet():  # it warns of each package that is newer than it knows
    import coremltools as ct

NAME, COMPANION = "coreml", None
# What is computed in; float16 is what the neural engines of phones run. Input and output stay float32.
PRECISIONS = ("float32", "float16")
_COMPUTED = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does: there is no quicker way to the same graph."""
    write(module, example, path)


@converting("Core ML's converter")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """For single images; input (1, C, H, W) and logits are float32."""
    if dynamic_batch:
        raise UserError("format coreml is for single images: it has no dynamic batch")
    # A TorchScript trace gives the same operators, but torch gives it up.
    converted = ct.convert(
        torch.export.export(module, (example,)).run_decompositions({}),
        convert_to="mlprogram",
        inputs=[ct.TensorType("image", tuple(example.shape), np.float32)],
        outputs=[ct.TensorType("logits", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=_COMPUTED[precision],
        skip_model_load=True,  # loading is the runtime's
    )
    if facts is not None:
        _describe_in(converted, facts)
    converted.save(str(path))
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)  # for another runtime
    _check(path, example)


def _describe_in(model: ct.models.MLModel, facts: Facts) -> None:
    model.user_defined_metadata.update(facts.metadata())
    count = "" if facts.classes is None else f", {len(facts.classes)} classes"
    model.short_description = f"{facts.task.capitalize()} by {facts.architecture}{count}"
    model.version = facts.pocketformer
    if facts.licence is not None:
        model.license = facts.licence


def read_metadata(path: Path) -> dict[str, str]:
    """Raises `UserError` for what is no package."""
    try:
        return dict(load(path)[0].description.metadata.userDefined)
    except Exception as error:  # the library raises many
        raise UserError(f"{path} is no Core ML package ({first_line(error)})") from None


def load(path: Path):
    """Of a package: its specification, and the operators of its one function, constants included."""
    with quiet():
        spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    function = spec.mlProgram.functions["main"]
    return spec, function.block_specializations[function.opset].operations


def _check(path: Path, example: torch.Tensor) -> None:
    """What can be told anywhere: the package can be read, and input and output are as promised."""
    spec, _ = load(path)
    found = {port.name: tuple(port.type.multiArrayType.shape) for port in spec.description.input}
    outputs = [port.name for port in spec.description.output]
    if found != {"image": tuple(example.shape)} or outputs != ["logits"]:
        raise WorkError(f"export refused: the Core ML package takes {found} and returns {', '.join(outputs)}")


def describe(path: Path) -> str:
    """The oldest systems that run it, the number of its operators, and whether it was run."""
    _, operators = load(path)
    count = sum(operator.type != "const" for operator in operators)
    run = "" if runtime_of(NAME) else "; not run here, as Core ML runs on macOS only"
    return f"Core ML program of {count} operators for iOS 16, macOS 13 or later{run}"
