"""With what a training is computed: device, precision, and how memory is spared. What is learned is the recipe's."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pocketformer import ranks
from pocketformer.errors import UserError
from pocketformer.runtimes.torch_compile import need_compiler

_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """`precision` is that of autocast: weights and sums stay float32. `accumulate`: parts of a batch that are run one
    after another (norms then see a part). `checkpointing` recomputes activations in the backward pass."""

    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    accumulate: int = 1
    checkpointing: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.precision not in _TYPES:
            raise UserError(f"precision is {self.precision!r}; it must be one of {', '.join(_TYPES)}")
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"device is {self.device!r}; it must be cpu or cuda")
        if self.device == "cuda" and torch.cuda.device_count() <= ranks.local_rank():
            raise UserError(
                f"device cuda: this machine has {torch.cuda.device_count()} CUDA devices that torch can use"
            )
        if self.accumulate < 1:
            raise UserError(f"accumulate is {self.accumulate}; it must be at least 1")
        if self.compile and self.device == "cpu":
            need_compiler()
        if self.precision == "float16" and self.device == "cpu":
            raise UserError("precision float16 needs a CUDA device; on a CPU, bfloat16")

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def where(self) -> torch.device:
        return torch.device("cuda", ranks.local_rank()) if self.device == "cuda" else torch.device("cpu")

    def autocast(self) -> AbstractContextManager:
        dtype = _TYPES[self.precision]
        return torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses so that float16 gradients do not vanish; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device, enabled=self.precision == "float16")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on its device, in channels last, set up as asked; the same module.

        On CUDA, norms take their statistics over the batches of all processes; elsewhere each over its own share.
        """
        model.to(self.where, memory_format=torch.channels_last)
        if self.checkpointing:
            if not hasattr(model, "set_grad_checkpointing"):
                raise UserError(f"gradient checkpointing: {type(model).__name__} has none")
            model.set_grad_checkpointing(True)
        if self.device == "cuda" and ranks.count() > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    def to_device(self, *values: Any) -> tuple[Any, ...]:
        """Tensors, or what else moves by `to`."""
        return tuple(value.to(self.where, non_blocking=True) for value in values)

    @contextmanager
    def determinism(self) -> Iterator[None]:
        """Within, kernels whose sums depend on chance are refused, if that was asked for."""
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.deterministic or before)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
