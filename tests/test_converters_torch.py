"""Files for ExecuTorch, PyTorch and AOTInductor: right results, planted mistakes refused, damage in one line."""

import copy
import os
import shutil
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perturbed import perturb
from pocketformer.architecture import Architecture, Attention, Design, FFN, Stage
from pocketformer.deploy import export, format_of, fuse
from pocketformer.deploy.efficientformerv2 import FusedAttention, FusedFFN, HeadMix
from pocketformer.errors import UserError, WorkError
from pocketformer.models import create_model
from pocketformer.runtimes import runtime
from pocketformer.runtimes.sessions import Sessions

# Every kind of part that talks across positions or channels, and as few operators as possible: ExecuTorch's converter
# takes a tenth of a second for each.
DESIGN = Design(
    resolution=(29, 22),
    stage_strides=(2, 2, 1),
    downsampling=("conv", "dual-path", "conv"),
    attention_strides=(1, 1, 2, 1),
    heads=2,
    key_dim=4,
    value_dim=2,
    downsampling_heads=2,
    downsampling_key_dim=4,
    downsampling_value_dim=2,
)
SMALL = Architecture(tuple(Stage(8, blocks) for blocks in ([FFN(1)], [FFN(1)], [Attention()], [FFN(1)])), DESIGN)
needs_executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
whole_compiled = pytest.mark.skipif("POCKETFORMER_SLOW" not in os.environ, reason="minutes: set POCKETFORMER_SLOW=1")
FORMATS = [
    pytest.param("executorch", marks=needs_executorch),
    "torch",
    pytest.param("aotinductor", marks=[needs_compiler, whole_compiled]),
]
