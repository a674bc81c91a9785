"""LiteRT (formerly TensorFlow Lite) files, by litert-torch; lower precisions by ai-edge-quantizer."""

import io
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from pocketformer.errors import UserError, WorkError

try:
    import litert_torch
except ModuleNotFoundError as error:
    if error.name != "litert_torch" or torch.__version__ < torch.torch_version.TorchVersion("2.15"):
        raise
    raise ImportError(
        f"litert-torch needs torch < 2.15, this is {torch.__version__} (pip install 'pocketformer[litert]')"
    ) from None

from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

NAME, COMPANION, RUNTIME = "litert", None, "litert"
# float16 is how weights are stored; phones with such arithmetic compute in it, others in float32.
PRECISIONS = ("float32", "float16", "int8")
_SIGNATURE = "serving_default"


class _Named(nn.Module):
    """Gives input and output their names."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(image)}


def write_quick(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """The same as `write`: there is one converter."""
    write(module, example, path)


def write(
    module: nn.Module,
    example: torch.Tensor,
    path: Path,
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    dynamic_batch: bool = False,
) -> None:
    """Input (1, C, H, W) and logits stay float32 in every precision; int8 is static, weights per channel."""
    if dynamic_batch:
        raise UserError("format litert is for single images: it has no dynamic batch")
    with torch.no_grad(), _quiet():
        try:
            named = _Named(module).eval()
            data = litert_torch.convert(named, sample_kwargs={"image": example}).model_content()
            if precision != "float32":
                data = _quantised(data, precision, calibration)
        except Exception as error:  # torch.export, JAX, MLIR and the quantiser raise many types
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkError(f"export refused: LiteRT's converter rejects this network ({lines[0]})") from None
    path.write_bytes(data)


def _quantised(data: bytes, precision: str, calibration: torch.Tensor | None) -> bytes:
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
        images = [{"image": image[None].numpy()} for image in calibration]
        found = chosen.calibrate({_SIGNATURE: images}, num_threads=1)
    return chosen.quantize(found, enable_progress_bar=False, enable_progress_report=False).quantized_model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress and logs; native code writes its own to the file descriptor of stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(log.fileno(), 2)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def operators(path: Path) -> Counter[str]:
    """How many operators of each kind a file holds; those that are not LiteRT's own are CUSTOM."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    return Counter(codes[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators)


def describe(path: Path) -> str:
    """The number of operators, and how many of them a runtime without extensions lacks."""
    found = operators(path)
    custom = found["CUSTOM"]
    return f"TFLite, {found.total()} operators, {f'{custom} of them custom' if custom else 'all builtin'}"
