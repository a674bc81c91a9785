"""LiteRT (formerly TensorFlow Lite) files, by litert-torch; lower precisions by ai-edge-quantizer."""

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from pocketformer.deploy.channels_last import channels_last
from pocketformer.deploy.facts import Facts
from pocketformer.deploy.quiet import converting
from pocketformer.errors import UserError, first_line
from pocketformer.runtimes import import_part

NAME, COMPANION = "litert", None
FACTS = "pocketformer"  # the name of the metadata
# float16: how weights are stored. Where there is no such arithmetic, they are computed with in float32.
PRECISIONS = ("float32", "float16", "int8")

if find_spec("litert_torch") is None:  # importing it takes seconds, and waits for the first file
    if torch.__version__ < (2, 15):
        raise ModuleNotFoundError(name="litert_torch")
    raise ImportError(
        f"litert-torch needs torch < 2.15, and this is {torch.__version__} (pip install 'pocketformer[litert]')"
    )


class _Named(nn.Module):
    """Gives input and output their names."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(image)}


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """As `write` does: there is no quicker way to the same graph."""
    write(module, example, path)


@converting("LiteRT's converter")
def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
    facts: Facts | None = None,
) -> None:
    """For single images; input (1, C, H, W) and logits stay float32 in every precision.

    int8: weights per output channel, activations per tensor, calibrated on `calibration` (N, C, H, W).
    """
    if dynamic_batch:
        raise UserError("format litert is for single images: it has no dynamic batch")
    converter = import_part("litert_torch", "format litert")
    named = _Named(channels_last(module)).eval()
    data = converter.convert(named, sample_kwargs={"image": example}).model_content()
    if precision != "float32":
        data = _quantised(data, precision, calibration)
    path.write_bytes(data if facts is None else _with_facts(data, facts))


def _with_facts(data: bytes, facts: Facts) -> bytes:
    """With the facts as one entry of the model's metadata, JSON."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    entry, held = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer = FACTS, len(model.buffers)
    held.data = list(json.dumps(facts.metadata()).encode())
    model.buffers.append(held)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def read_metadata(path: Path) -> dict[str, str]:
    """Raises `UserError` for what is no LiteRT file."""
    try:
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        entry = next((e for e in model.metadata or [] if e.name.decode() == FACTS), None)
        return {} if entry is None else json.loads(bytes(model.buffers[entry.buffer].data).decode())
    except Exception as error:  # whatever the parser meets
        raise UserError(f"{path} is no LiteRT file ({first_line(error)})") from None


def _quantised(data: bytes, precision: str, calibration: torch.Tensor | None) -> bytes:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    operation, algorithm = qtyping.TFLOperationName, algorithm_manager.AlgorithmName
    if precision == "float16":
        chosen, found = quantizer.Quantizer(data), None
        weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(weight_tensor_config=weights)
        chosen.update_quantization_recipe(".*", operation.ALL_SUPPORTED, config, algorithm.FLOAT_CASTING)
    else:
        chosen = quantizer.Quantizer(data, recipe.static_wi8_ai8())
        for end in (operation.INPUT, operation.OUTPUT):
            chosen.update_quantization_recipe(".*", end, algorithm_key=algorithm.NO_QUANTIZE)
        images = [{"image": image.numpy()} for image in calibration.split(1)]
        found = chosen.calibrate({"serving_default": images}, num_threads=1)
    return chosen.quantize(found, enable_progress_bar=False, enable_progress_report=False).quantized_model


def operators(path: Path) -> Counter[str]:
    """How many operators of each kind a file holds; those that are not LiteRT's own are CUSTOM."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    kinds = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    return Counter(kinds[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators)


def describe(path: Path) -> str:
    """The number of operators, and how many of them a runtime without extensions lacks."""
    found = operators(path)
    custom = found["CUSTOM"]
    return f"TFLite, {found.total()} operators, {f'{custom} of them custom' if custom else 'all builtin'}"
