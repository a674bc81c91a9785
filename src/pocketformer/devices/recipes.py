"""The recipe that goes with emitted models: a README.txt, and a script where the device's own tool has a command line.

The scripts take each model in turn, in a new order each pass, and the reference again for every eight models.
"""

import string
from importlib.resources import files as package_files

from pocketformer.devices.manifest import Manifest

# Scripts by format. Those for a shell write logs/PASS_GROUP/MODEL.txt and logs/about.json, which `--import logs` reads.
_SCRIPTS = {
    "litert": ("android-litert.sh", "each-model.sh"),
    "executorch": ("android-executorch.sh", "each-model.sh"),
    "onnx": ("jetson-trtexec.sh", "each-model.sh", "onnxruntime-anywhere.py"),
    "coreml": ("Measure.swift",),
}
_STEPS = {
    "litert": "sh android-litert.sh (needs adb and LiteRT's benchmark_model for Android; its first lines say where)",
    "executorch": "sh android-executorch.sh (needs adb and executor_runner for Android; its first lines say where)",
    "onnx": "on a Jetson: sh jetson-trtexec.sh; elsewhere, without pocketformer: python onnxruntime-anywhere.py",
    "coreml": "Measure.swift in an app on the iPhone, or Xcode's performance report (docs/devices.md)",
}
_README = """Models to be timed on another device, for a latency table of the search space {space}.

{count} {format} files in models/, {megabytes:.0f} MB: chains of blocks, whole networks, the reference network
(reference) and MobileNetV2 x1.0 (unit). Weights are random; each takes one float32 input of fixed shape.

1. Time them: {steps}
2. Back here: pocketformer profile --import logs --out table.json    (or a results.json, or a times.csv)

Whatever measures: keep the screen on and the device cool and idle, time each model at least twice in different
orders, and the reference again every few models; all times are compared with the reference's beside them.
manifest.json says what each file is. A results.json may be written by hand or by any tool:

{{"manifest": "{id}",
 "device": "Pixel 8", "os": "Android 15", "runtime": "litert", "version": "1.4", "threads": 1,
 "passes": [{{"reference": [3.1, 3.2], "chain_000": [0.2, 0.2]}}, {{"reference": {{"mean_ms": 3.0}}}}]}}

Times are ms. Every pass has the reference; together they have all models. All of docs/devices.md is about this.
"""


def recipe(manifest: Manifest) -> dict[str, str]:
    """File name to text, for the folder of emitted models."""
    name = manifest.settings["model_format"]
    text = _README.format(
        space=manifest.plan.space.name,
        count=len(manifest.models),
        format=name,
        megabytes=manifest.bytes / 1e6,
        steps=_STEPS.get(name, "with the runtime's own benchmark tool (docs/devices.md)"),
        id=manifest.id,
    )
    return {"README.txt": text, **scripts(name, manifest.id)}


def scripts(format_name: str, manifest_id: str) -> dict[str, str]:
    """The scripts alone."""
    found = {}
    for script in _SCRIPTS.get(format_name, ()):
        source = package_files(__package__).joinpath("scripts", script).read_text(encoding="utf-8")
        found[script] = _Template(source).substitute(manifest=manifest_id)
    return found


class _Template(string.Template):
    """What begins with two at signs stands for a value: shells and Swift keep their dollars."""

    delimiter = "@@"
