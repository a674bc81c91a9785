"""Options that several commands share, how they are checked, and what they turn into."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer


def above_zero(value: float | None) -> float | None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"must be above zero, not {value:g}")
    return value


def not_negative(value: float) -> float:
    if not (value >= 0 and math.isfinite(value)):
        raise typer.BadParameter(f"must not be below zero, not {value:g}")
    return value


def one_of(known: Callable[[], Iterable[str]]) -> Callable[[str | None], str | None]:
    """A check that the value is one of `known()`, which is called when the option is."""

    def check(value: str | None) -> str | None:
        names = tuple(known())
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is unknown; known: {', '.join(names)}")
        return value

    return check


def size_of(text: str | None) -> tuple[int, int] | None:
    """Height and width in px, of `N` or `HxW`."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([1-9]\d{0,4})(?:\s*[xX×]\s*([1-9]\d{0,4}))?\s*", text)
    if found is None:
        raise typer.BadParameter(f"--size {text!r}: give a number of px, such as 160, or height and width: 180x240")
    return int(found[1]), int(found[2] or found[1])


def _runtimes() -> tuple[str, ...]:
    from pocketformer.runtimes import RUNTIMES

    return RUNTIMES


def _formats() -> tuple[str, ...]:
    from pocketformer.deploy import FORMATS

    return FORMATS


check_runtime, check_format = one_of(_runtimes), one_of(_formats)

Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="A folder with train/ and val/ or test/, one sub-folder a class; 'embedded' (8,000 images of "
        "Fashion-MNIST); or a dataset name of timm: torch/cifar10, hfds/…, wds/… ($POCKETFORMER_DATASETS says "
        "where torch/ and wds/ keep theirs). Without either, a tenth is set aside for testing; with both, "
        "val/ is what a search is scored on. docs/images.md has all names and layouts.",
    ),
]
AcceptTableError = Annotated[
    bool,
    typer.Option(
        "--accept-table-error",
        help="Go on with a latency table whose own check finds it more than 20 % wrong on average.",
    ),
]
Moved = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="Where the supernet's images are now. [default: where they were]"),
]
Out = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Folder of the run; the same command on the same folder resumes it."),
]
Space = Annotated[
    str | None,
    typer.Option(
        metavar="SPACE",
        help="Search space: a shipped name (see `pocketformer models`) or the path of a .yaml file. "
        "[default: the shipped one nearest to the images' size]",
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=check_runtime,
        help="The runtime to measure on and deploy to: onnxruntime, openvino, executorch, litert, torch, "
        "torch-compile, aotinductor or tensorrt. Some need an extra, such as pocketformer[openvino].",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", min=0, help="Seed of splits, order, augmentation, subnets and weights.")
]
Threads = Annotated[int, typer.Option(metavar="N", min=1, help="Processor threads of a network while it is timed.")]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Images per call while a network is timed.")]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="cpu|cuda",
        callback=one_of(lambda: ("cpu", "cuda")),
        help="What the runtime runs on, where it has a choice. [default: the processor; tensorrt: the GPU]",
    ),
]
Classifier = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="PATH",
        help="Folder of `design` or `train`; an exported file, with the .json that was written beside it; or a file of "
        "weights (official, timm's or ours) with its --architecture.",
    ),
]
FileRuntime = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=check_runtime,
        help="Run the exported file (of the folder's exported/, or --file) on this runtime, such as onnxruntime. "
        "[default: PyTorch; of a file, the one for its format]",
    ),
]
ExportedFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="An exported file of the network at PATH, anywhere, that has no .json beside it."
    ),
]
Workers = Annotated[int, typer.Option(metavar="N", min=0, help="Threads that decode images.")]
BadImages = Annotated[
    str,
    typer.Option(
        metavar="refuse|skip",
        callback=one_of(lambda: ("refuse", "skip")),
        help="What to do when files among the images cannot be read.",
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        metavar="prefix|folder|REGEX",
        help="Keep the images of one group (a burst, a patient) on one side of every split. The group is what a file's "
        "name has before its last _ or - (prefix), the folder that it lies in below its class's (folder), or what a "
        "regular expression finds in its path, such as 'patient\\d+'. Copies of one image always stay together.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
Opset = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Of an ONNX file, 17 to 20: older runtimes read lower ones. [default: the lowest that is as fast, 17; of "
        "int8 20]",
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="A file that takes the bytes of an image, uint8 (1, height, width, 3), and normalises them."
    ),
]
Licence = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Licence of the weights, written into the file's facts. [default: as the folder says]"
    ),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Budget: 0.9ms, 900us, 0.9 (ms), or 50% of the largest subnet's latency by the table. A latency is the "
        "10th percentile of its calls: what one takes when nothing else runs.",
    ),
]
MaxParameters = Annotated[
    str | None,
    typer.Option(metavar="COUNT", help="Budget: 3.5M, 800k, 3500000, or 50% of the largest subnet's parameters."),
]
MaxMacs = Annotated[
    str | None,
    typer.Option(metavar="COUNT", help="Budget on multiply-adds: 300M, 0.4G, or 50% of the largest subnet's."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Budget on peak activation memory (batch 1, float32): 4MB, 500kB, 4 (MB), or 50% of the largest subnet's.",
    ),
]
MinMes = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        callback=above_zero,
        help="Smallest Mobile Efficiency Score, 100 for MobileNetV2's latency here and 3 M parameters.",
    ),
]
Alpha = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=X",
        help="Exponent of size, latency, macs, memory or energy in MES; may be repeated. [default: latency 1, shared "
        "by the devices; size 0.5; 0.5 for another one that has a budget]",
    ),
]
Form = Annotated[
    str,
    typer.Option(
        metavar="budget|paper",
        callback=one_of(lambda: ("budget", "paper")),
        help="The MES that is climbed: a metric that has met its budget stops rewarding, or as the paper prints it.",
    ),
]
Epochs = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        callback=above_zero,
        help="Passes over the training images; fractions count. [default: the recipe's]",
    ),
]
BatchSize = Annotated[int | None, typer.Option(metavar="N", min=1, help="Images a step. [default: the recipe's]")]
Balance = Annotated[
    str | None,
    typer.Option(
        metavar="none|sampling|weights",
        callback=one_of(lambda: ("none", "sampling", "weights")),
        help="Where some classes have many more images than others: draw all classes equally often, or weigh the loss "
        "by class. [default: the recipe's, none]",
    ),
]
DropPath = Annotated[
    float | None, typer.Option(metavar="X", min=0, max=0.9, help="Stochastic depth: drop rate of the last block.")
]
Teacher = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[=FILE]",
        help="Hard distillation from this timm model, with its published weights or those of FILE; its head must "
        "have the data's classes, or ImageNet's 1000 where the data's are named as synsets (n01440764).",
    ),
]
ClassOrder = Annotated[
    str | None,
    typer.Option(
        metavar="timm|sorted|FILE",
        help="In which order weights that name no classes know the data's: as timm numbers folders (1, 2, 10), sorted "
        "as torchvision does (1, 10, 2), or as FILE lists their names (one a line, or JSON). Needed where they differ.",
    ),
]
ArchitectureFile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="A published name, or an architecture.json. [default: the one beside the checkpoint]",
    ),
]


def changed(recipe: Any, **given: Any) -> Any:
    """The recipe with what the command line gives (not None)."""
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def pick_space(name: str | None, data: str):
    """The named space, or the shipped one nearest to the images' size (said on stderr)."""
    from pocketformer.architecture import SearchSpace
    from pocketformer.progress import say
    from pocketformer.training.data import survey

    if name is not None:
        return SearchSpace.named(name)
    side = survey(data).median_side
    name = "pocket28" if side <= 28 else "pocket32" if side <= 40 else "pocket64"
    say(f"note: images of about {side} px: using the space {name} (others by --space)")
    return SearchSpace.named(name)


def print_json(value: Any) -> None:
    from pocketformer.files import json_text

    print(json_text(value))
