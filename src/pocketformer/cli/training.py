"""The options of trainings, shared by `train` and `supernet`, and what they turn into."""

from typing import Annotated, Any

import typer

from pocketformer.cli import options


def _recipes() -> tuple[str, ...]:
    from pocketformer.training.recipe import RECIPES

    return tuple(RECIPES)


RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="imagenet (V2 Table 5, 300 epochs), small-images, finetune, or a .yaml file of a recipe's entries.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Change an entry of the recipe, such as mixup=0.2; may be repeated."
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="cpu|cuda", callback=options.one_of(lambda: ("cpu", "cuda")), help="What computes."),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        callback=options.one_of(lambda: ("float32", "bfloat16", "float16")),
        help="Of autocast: float32, bfloat16, or float16 (CUDA only). Weights stay float32.",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")]
Distillation = Annotated[
    str,
    typer.Option(
        metavar="hard|soft",
        callback=options.one_of(lambda: ("hard", "soft")),
        help="Learn from the teacher's answers (the papers') or from its probabilities.",
    ),
]
Accumulate = Annotated[
    int, typer.Option(metavar="N", min=1, help="Run each batch in N parts, one after another, to save memory.")
]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass, to save memory.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Refuse kernels whose sums depend on chance (on a GPU).")
]

Exif = Annotated[
    str,
    typer.Option(
        metavar="auto|shown|stored",
        callback=options.one_of(lambda: ("auto", "shown", "stored")),
        help="On which form of an image that EXIF turns its annotation was drawn, where sizes do not tell: on the "
        "image as shown, or as stored; auto: as on the others of the set (docs/dense.md).",
    ),
]
Keep = Annotated[int, typer.Option(metavar="N", min=1, max=10, help="Checkpoints that are kept.")]
Backbone = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="The backbone: a published name (see `pocketformer models`), an architecture.json, or a folder with one.",
    ),
]
BackboneInit = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Start from the weights of a search, a supernet, a trained network, or a file of weights (official, "
        "timm's or ours); its norms are then frozen. [default: random weights]",
    ),
]


def compute(
    device: str, precision: str, compile: bool, accumulate: int, checkpointing: bool, deterministic: bool
) -> Any:
    from pocketformer.training.compute import Compute

    return Compute(device, precision, compile, accumulate, checkpointing, deterministic)


def recipe(name: str, changes: list[str] | None, **given: Any) -> Any:
    """The named recipe with the command's own options (those not None), then with what --set says."""
    from pocketformer.training.recipe import Recipe

    return options.changed(Recipe.named(name), **given).with_text(changes or [])
