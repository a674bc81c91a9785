"""What a file says of itself, read with each format's own library, as somebody would who has never heard of us."""

import json
from pathlib import Path


def metadata(format: str, path: Path) -> dict[str, str]:
    """The facts as texts by name."""
    return globals()[f"_{format}"](str(path))


def _onnx(path: str) -> dict[str, str]:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map


def _openvino(path: str) -> dict[str, str]:
    import openvino

    return {name: value.astype(str) for name, value in openvino.Core().read_model(path).rt_info["pocketformer"].items()}


def _torch(path: str) -> dict[str, str]:
    import torch

    extra = {"facts.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["facts.json"])


def _aotinductor(path: str) -> dict[str, str]:
    import torch._inductor

    return json.loads(torch._inductor.aoti_load_package(path).get_metadata()["facts"])


def _executorch(path: str) -> dict[str, str]:
    import torch  # noqa: F401 (before ExecuTorch's library, which needs torch's)
    from executorch.extension.pybindings import _C

    return json.loads(_C._load_for_executorch(path).run_method("facts", ())[0])


def _litert(path: str) -> dict[str, str]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(Path(path).read_bytes(), 0)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    entry = next(entry for entry in entries if entry.Name() == b"pocketformer")
    return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())


def _coreml(path: str) -> dict[str, str]:
    import coremltools

    found = coremltools.models.MLModel(path, skip_model_load=True).user_defined_metadata
    return {name: text for name, text in found.items() if not name.startswith("com.github.apple.coremltools.")}
