"""From a trained network to a file that a device runs: fusing, exporting, verifying."""

from pocketformer.deploy import efficientformer, efficientformerv2  # noqa: F401  (they register their blocks)
from pocketformer.deploy.exporter import FORMATS, ExportReport, export
from pocketformer.deploy.fuse import FusedHead, FusedNetwork, fuse, fuse_block
from pocketformer.deploy.onnx import OPSET, write_onnx

__all__ = [
    "FORMATS",
    "OPSET",
    "ExportReport",
    "FusedHead",
    "FusedNetwork",
    "export",
    "fuse",
    "fuse_block",
    "write_onnx",
]
