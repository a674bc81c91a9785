"""Native code that AOTInductor compiled, on the processor."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pocketformer.errors import UserError
from pocketformer.runtimes.torch import first_line

NAME, FORMAT, DEVICES = "aotinductor", "aotinductor", ("cpu",)


class Session:
    def __init__(self, path: str | os.PathLike, threads: int):
        if not Path(path).is_file():
            raise UserError(f"model file not found: {path}")
        torch.set_num_threads(threads)
        try:
            self._module = torch._inductor.aoti_load_package(str(path))
        except Exception as error:
            raise UserError(f"AOTInductor cannot load {path}: {first_line(error)}") from None
        self.shape = (1, 3, 1, 1)
