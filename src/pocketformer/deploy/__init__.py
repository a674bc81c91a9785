"""From a trained network to a file that a device runs: fusing, exporting, verifying."""

from pocketformer.deploy import efficientformer, efficientformerv2  # noqa: F401  (they register their blocks)
from pocketformer.deploy.eager import eager
from pocketformer.deploy.exporter import ExportReport, check_target, export, exporter_of
from pocketformer.deploy.facts import Facts, facts_path, read_facts
from pocketformer.deploy.formats import (
    FORMATS,
    SUFFIXES,
    format_by_name,
    format_for,
    format_of,
    runtime_of,
)
from pocketformer.deploy.fuse import FusedHead, FusedNetwork, fuse, fuse_block

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ExportReport",
    "Facts",
    "FusedHead",
    "FusedNetwork",
    "check_target",
    "eager",
    "export",
    "exporter_of",
    "facts_path",
    "format_by_name",
    "format_for",
    "format_of",
    "fuse",
    "fuse_block",
    "read_facts",
    "runtime_of",
]
