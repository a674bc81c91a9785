"""Options that several commands share, and what they turn into."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketformer.errors import UserError

Data = Annotated[
    str,
    typer.Option(
        help="A folder (train/ and val/, one sub-folder a class), 'embedded', or a dataset name that timm takes: "
        "torch/…, hfds/…, wds/… (torch/ and wds/ look in $POCKETFORMER_DATASETS)."
    ),
]
Out = Annotated[Path, typer.Option(help="The run's folder; the same command on the same folder resumes.")]
Space = Annotated[
    str | None, typer.Option(help="Search space: a shipped name (see `models`) or the path of a YAML file.")
]
Runtime = Annotated[str, typer.Option(help="The runtime to measure on and deploy to.")]
Seed = Annotated[int, typer.Option(help="Seed of splits, order, augmentation, subnets and initial weights.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the deployed network while it is timed.")]
Batch = Annotated[int, typer.Option(min=1, help="Images a call while it is timed.")]
Workers = Annotated[int, typer.Option(min=0, help="Threads that decode images.")]
BadImages = Annotated[str, typer.Option(help="Files that are no images: 'refuse' the data or 'skip' them.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
MaxLatency = Annotated[
    str | None, typer.Option(help="Budget: 0.9ms, 900us, 0.9 (ms), or 50% of the largest subnet's.")
]
MaxParameters = Annotated[
    str | None, typer.Option(help="Budget: 3.5M, 800k, 3500000, or 50% of the largest subnet's.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Budget on peak activation memory, batch 1, float32: 4MB, 500kB, 4 (MB), or 50%."),
]
MinMes = Annotated[float | None, typer.Option(help="Smallest Mobile Efficiency Score (in this device's unit).")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a step.")]


def budgets(latency: str | None, parameters: str | None, memory: str | None) -> dict:
    """{metric: Budget} of those given."""
    from pocketformer.pipelines.settings import parse_budget

    given = {"latency": latency, "size": parameters, "memory": memory}
    return {name: parse_budget(name, text) for name, text in given.items() if text is not None}


def check_min_mes(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise UserError(f"--min-mes must be above zero, not {value}")
    return value


def check_bad_images(value: str) -> str:
    if value not in ("refuse", "skip"):
        raise UserError(f"--bad-images is 'refuse' or 'skip', not {value!r}")
    return value


def changed(recipe: Any, epochs: float | None, batch_size: int | None) -> Any:
    """The recipe with what the command line says."""
    given = {"epochs": epochs, "batch_size": batch_size}
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
    print(json.dumps(value, ensure_ascii=False))
