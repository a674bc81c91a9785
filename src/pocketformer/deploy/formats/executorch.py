"""ExecuTorch programs (.pte) for its XNNPACK delegate."""

import json
import math
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import executorch  # noqa: F401 (only whether it is there: the converter takes seconds to import)
import torch
from torch import nn

from pocketformer.deploy.facts import MARK, Facts
from pocketformer.deploy.quiet import converting, quiet
from pocketformer.errors import UserError
from pocketformer.runtimes import import_part
from pocketformer.runtimes.executorch import DYNAMIC

NAME, COMPANION = "executorch", None
PRECISIONS = ("float32", "int8")  # in float16 the delegate has no GELU
FACTS = "facts"  # the constant method that returns them
MAX_BATCH = 64  # memory is planned for the largest one


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does: there is no quicker way to the same program."""
    write(module, example, path)


@converting("ExecuTorch")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """With `dynamic_batch` for up to `MAX_BATCH` images at once; the delegate then gets it in pieces and is slower.

    int8: weights per output channel and activations per tensor, both symmetric or as XNNPACK wants them.
    """
    shapes = None
    if dynamic_batch:  # with one example, torch.export would take the batch for a constant
        example, shapes = torch.cat([example, example]), ({0: torch.export.Dim("batch", max=MAX_BATCH)},)
    if precision == "int8":
        module = _quantised(module, example, calibration, shapes)
    constants = {DYNAMIC: dynamic_batch} | ({} if facts is None else {FACTS: json.dumps(facts.metadata())})
    program = _lowered(torch.export.export(module, (example,), dynamic_shapes=shapes), constants)
    with open(path, "wb") as file:
        program.write_to_file(file)


def _lowered(program: torch.export.ExportedProgram, constants: dict):
    exir = _part("executorch.exir")
    partitioner = _part("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    lowered = exir.to_edge_transform_and_lower(
        program,
        transform_passes=[_delegable()],
        partitioner=[partitioner.XnnpackPartitioner()],
        constant_methods=constants,
    )
    return lowered.to_executorch()


def _delegable():
    """A pass over the graph that rewrites, exactly, what XNNPACK gets wrong or is not given.

    Each operator outside XNNPACK splits the graph, and every part converts its inputs and outputs to another layout.
    """
    aten = _part("executorch.exir.dialects._ops").ops.edge.aten

    class Delegable(_part("executorch.exir.pass_base").ExportPass):
        def call_operator(self, op, args, kwargs, meta):
            call, x = super().call_operator, args[0].data if args and hasattr(args[0], "data") else None
            if op == aten.expand_copy.default:  # that of a matrix product, which broadcasts nothing but a constant
                size = tuple(meta["val"].shape)
                if str(tuple(x.shape)) == str(size):  # comparing symbols would fix their values
                    return args[0]
                if all(isinstance(side, int) for side in size) and math.prod(x.shape) == math.prod(size):
                    return call(aten.view_copy.default, (args[0], list(size)), {}, meta)
            if op == aten.view_copy.default:  # the one size that is not known, XNNPACK has to infer
                args = (args[0], [side if isinstance(side, int) else -1 for side in args[1]])
            if op == aten.mean.dim and x.ndim == 4 and len(args) == 2:  # XNNPACK keeps the reduced sides
                kept = call(op, (args[0], args[1], True), kwargs, meta)
                return call(aten.view_copy.default, (kept, [-1, x.shape[1]]), {}, meta)
            if op == aten._softmax.default and x.ndim == 4 and args[1] in (-1, 3):
                # Behind a convolution, XNNPACK has the channels last and normalises over them. Not behind a view.
                flat = call(aten.view_copy.default, (args[0], [-1, *x.shape[2:]]), {}, meta)
                flat = call(op, (flat, -1, args[2]), kwargs, meta)
                return call(aten.view_copy.default, (flat, [-1, *x.shape[1:]]), {}, meta)
            return call(op, args, kwargs, meta)

    return Delegable()


def _quantised(module: nn.Module, example: torch.Tensor, calibration: torch.Tensor, shapes) -> nn.Module:
    xnnpack = _part("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = _part("torchao.quantization.pt2e.quantize_pt2e")
    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    graph = torch.export.export(module, (example,), dynamic_shapes=shapes).module()
    prepared = pt2e.prepare_pt2e(graph, quantizer)
    for batch in calibration.split(len(example)):
        if len(batch) == len(example):
            prepared(batch)
    return pt2e.convert_pt2e(prepared)


def _part(name: str) -> ModuleType:
    return import_part(name, f"format {NAME}")


def read_metadata(path: Path) -> dict[str, str]:
    """Raises `UserError` for what is no program.

    The text lies in the program as it is, ASCII; ExecuTorch's own reader takes 5 to 10 s to import.
    """
    data = path.read_bytes()
    if data[4:6] != b"ET":
        raise UserError(f"{path} is no ExecuTorch program")
    begin = data.find(json.dumps({MARK: ""}).encode()[:-2])
    if begin < 0:
        return {}
    try:
        return json.JSONDecoder().raw_decode(data[begin : data.index(b"}\0", begin) + 1].decode("ascii"))[0]
    except ValueError:
        raise UserError(f"{path}: its metadata are damaged") from None


def describe(path: Path) -> str:
    """The version of the converter, and how much of the network the delegate was given."""
    with quiet():
        plan = _part("executorch.exir._serialize._program").deserialize_pte_binary(path.read_bytes())
    calls = [c.instr_args for chain in plan.program.execution_plan[0].chains for c in chain.instructions]
    kinds = [type(call).__name__ for call in calls]
    parts, others = kinds.count("DelegateCall"), kinds.count("KernelCall")
    return f"ExecuTorch {version('executorch')}, {parts} XNNPACK part(s), {others} operators outside"
