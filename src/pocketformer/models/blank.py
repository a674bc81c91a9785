"""Networks without random numbers, for those whose weights are all loaded right after."""

from typing import Any

import torch
from torch.nn import init
from torch.overrides import TorchFunctionMode

# Each fills the tensor that it is given first, and returns it; `erfinv_` is of timm's truncated normal numbers.
_DRAWS = {init.kaiming_uniform_, init.uniform_, init.normal_}
_DRAWS |= {torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_}


class Blank(TorchFunctionMode):
    """`with Blank():` a network is built of the usual shapes, constants and buffers, but what initialisation would draw
    is left as the memory was. The random state is left as it is. Every parameter must be loaded before it is used."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
