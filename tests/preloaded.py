"""What the server of jobs has imported, and done once, before it forks them: see `processes`."""

import importlib
import io
import pkgutil
from importlib.util import find_spec

import torch
from tqdm import tqdm

import pocketformer.cli
from quick_converters import hasten

for module in pkgutil.iter_modules(pocketformer.cli.__path__):
    if not module.name.startswith("__"):
        importlib.import_module(f"pocketformer.cli.{module.name}")
for name in (
    "tensorboard.summary.v1",
    "torch.utils.tensorboard",
    "plotly.graph_objects",
    "plotly.offline",
    "pocketformer.pipelines.design",
    "pocketformer.pipelines.searches",
    "pocketformer.pipelines.trainings",
    "pocketformer.report",
    "timm",
    "trainings",
):
    importlib.import_module(name)
hasten()
if find_spec("onnxscript"):  # the first file of a process takes seconds more than the next ones
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # it would begin a thread
    for dynamo in (True, False):
        model, example = torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),)
        torch.onnx.export(model, example, io.BytesIO(), opset_version=18, dynamo=dynamo, verbose=False)
