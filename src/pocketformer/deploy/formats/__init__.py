"""The file formats that a network is exported to, one module each.

A format's module has `NAME`; `COMPANION`, the suffix of a second file or None; `PRECISIONS`;
`write_quick(module, example, path)`, which writes a fused module for inputs of exactly the example's shape, as
latency tables time it; `write(module, example, path, precision, calibration, dynamic_batch, facts)`, for shipping;
`describe(path)`, what to say of a file; and, where a file has a place for them, `read_metadata(path)`, the `facts` as
texts. Both writers take `module` in evaluation mode, leave it as it is, and
raise `WorkError` for what the converter rejects (`deploy.quiet.converting`).
"""

import os
import sys
from pathlib import Path
from types import ModuleType

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.runtimes import import_part, runtime

# Names, and how the names of their files end.
SUFFIXES = {
    "onnx": ".onnx",
    "openvino": ".xml",
    "executorch": ".pte",
    "litert": ".tflite",
    "coreml": ".mlpackage",
    "tensorrt": ".engine",
    "torch": ".pt2",
    "aotinductor": ".aoti.pt2",
}
FORMATS = tuple(SUFFIXES)
# Those that cannot take the bytes of an image, and why.
WITHOUT_RAW = {"coreml": "Core ML has no arrays of bytes", "tensorrt": "its engines here take float32 alone"}


def format_of(name: str) -> ModuleType:
    """The module of a format. Raises `UserError` if it is unknown or its converter is not installed."""
    if name not in FORMATS:
        raise UserError(f"no export format {name!r}; known: {', '.join(FORMATS)}")
    return import_part(f"{__name__}.{name}", f"format {name}")


def format_for(runtime_name: str) -> ModuleType:
    """The module of the format that a runtime runs."""
    return format_of(runtime(runtime_name).FORMAT)


def runtime_of(name: str) -> str | None:
    """The name of the runtime that runs a format's files here, or None. Imports neither."""
    if name == "coreml" and sys.platform != "darwin":
        return None
    return "onnxruntime" if name == "onnx" else name


def check_name(path: str | os.PathLike, format: str) -> None:
    """Raises `UserError` unless the file's name ends as the format's do: by that its runtime is found."""
    files.check_name(path)
    name, told = Path(path).name, format_by_name(path)
    if told != format or not name.endswith(SUFFIXES[format]) or name == SUFFIXES[format]:
        other = f"; this one's is of --format {told}" if told not in (None, format) else ""
        wanted = f"ends in {SUFFIXES[format]}, such as model{SUFFIXES[format]}"
        raise UserError(f"{path}: the name of a file of format {format} {wanted}{other}")


def format_by_name(path: str | os.PathLike) -> str | None:
    """The format that a file's name tells, in any case, or None."""
    name = Path(path).name.lower()
    fitting = [format for format, suffix in SUFFIXES.items() if name.endswith(suffix)]
    return max(fitting, key=lambda format: len(SUFFIXES[format]), default=None)
