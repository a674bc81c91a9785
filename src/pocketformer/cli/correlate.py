"""`correlate`: what a supernet's accuracy of a subnet says of its accuracy after training."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options, training


def correlate(
    supernet: Annotated[Path, typer.Option(metavar="FOLDER", help="A folder of `supernet` or `design`.")],
    out: options.Out,
    subnets: Annotated[int, typer.Option(metavar="N", help="Subnets of each of the two sets, at least 4.")] = 20,
    parameters: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT",
            help="The subnets of the second set have within 15% of it: 800k, 3.5M, or 50% of the largest subnet's. "
            "[default: the geometric mean of the smallest and the largest]",
        ),
    ] = None,
    found: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Train what this search found as well, beside the two sets; may be repeated."
        ),
    ] = None,
    alone: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="An earlier run of `correlate`, whose largest network, trained alone, is taken instead of a new one.",
        ),
    ] = None,
    data: options.Moved = None,
    recipe: training.RecipeName = "small-images",
    set_: training.Set = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    device: training.Device = "cpu",
    precision: training.Precision = "float32",
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Of the draw and of the trainings. [default: the supernet's]"),
    ] = None,
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Correlate supernet accuracy with accuracy after training.

    As in Fig. 5 of EfficientFormerV2: N subnets spread over the space, and N of about one size, are scored in
    the supernet with its norms and with re-calibrated ones, and as slices of the largest network trained alone
    (EagleEye). Then each is trained from scratch on fit. All accuracies are on the search split of the
    supernet's images.

    Writes correlation.json, correlation.html and subnets/ (the trained networks).

    \b
    Examples:
      pocketformer correlate --supernet runs/supernet --subnets 20 --epochs 30 --out runs/correlation
      pocketformer correlate --supernet runs/supernet --parameters 800k --found runs/search \\
        --alone runs/correlation --out runs/near
    """
    from pocketformer.pipelines.correlations import CorrelateSettings
    from pocketformer.pipelines.correlations import correlate as run

    asked = CorrelateSettings(
        str(supernet),
        training.recipe(recipe, set_, epochs=epochs, batch_size=batch_size),
        subnets,
        _count(parameters),
        alone and str(alone),
        tuple(map(str, found or ())),
        data,
        seed,
        training.compute(device, precision, False, 1, False, False),
        workers,
    )
    result = run(asked, out)
    if json:
        options.print_json(result)
        return
    print(_told(result))
    print(f"\n{out / 'correlation.json'}, {out / 'correlation.html'}")


def _count(text: str | None):
    """A number of parameters, or a share of the largest subnet's."""
    from pocketformer.errors import UserError
    from pocketformer.pipelines.settings import parse_budget

    try:
        return None if text is None else parse_budget("size", text)
    except UserError as error:  # which names the option that budgets have
        raise UserError(str(error).replace("--max-parameters", "--parameters")) from None


def _told(result: dict) -> str:
    """The three ways of each set in a table."""
    from pocketformer.cli.summary import aligned, percent
    from pocketformer.report.correlation import TITLES, accuracies, figures_of

    lines = [f"Accuracies on search, {result['images']} images; intervals: 95 %, over the subnets."]
    for name, found in result["sets"].items():
        low, high = found["parameters"]
        lines.append("")
        if "ways" not in found:
            for row in found["subnets"]:
                after, before = (row["accuracy"][way] for way in ("trained", "recalibrated"))
                told = f"{percent(after)} after training, {before['accuracy']:.1%} in the supernet, re-calibrated"
                lines.append(f"{row['subnet']}: {row['parameters']:,} parameters, {told}")
            continue
        after = accuracies(found, "trained")
        lines.append(
            f"{len(found['subnets'])} subnets {TITLES[name]}, {low:,} to {high:,} parameters; "
            f"after training {min(after):.1%} to {max(after):.1%}"
        )
        rows = [("accuracy against that after training", "range", "r²", "Spearman", "Kendall")]
        for way, measures in found["ways"].items():
            before = accuracies(found, way)
            rows.append((TITLES[way], f"{min(before):.1%} to {max(before):.1%}", *figures_of(measures)))
        lines.append(aligned(rows))
        above = found["recalibrated_above"]["alone"]
        told = ", ".join(_above(name, above[name]) for name in above)
        lines.append(f"  re-calibrated above EagleEye, from -2 to 2 each: {told}")
    return "\n".join(lines)


def _above(name: str, measure: dict) -> str:
    low, high = measure["interval95"]
    title = "r·|r|" if name == "r2" else name.capitalize()  # a negative correlation counts as a negative r²
    return f"{title} {measure['value']:+.2f} ({low:+.2f} to {high:+.2f})"
