"""What converters do again for each file, done once in a process of tests; their files are the same byte for byte."""

import functools
from importlib.util import find_spec


def hasten() -> None:
    """Spares a second of an ONNX file's three, and a sixth of an ExecuTorch program's time."""
    from torch.fx.traceback import NodeSource

    # Where a node came from is never changed, and yet copied, with all that it came from, whenever a node is.
    NodeSource.__deepcopy__ = lambda self, _: self
    if find_spec("onnxscript"):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        # Each export parses the source of all functions that it knows, and only looks them up then.
        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
