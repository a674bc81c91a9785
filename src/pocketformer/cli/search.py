"""`search`: find architectures on a trained supernet, or choose on a finished trajectory."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def search(
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the search; the same command resumes it.")
    ] = None,
    supernet: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A folder of `supernet` or `design`.")] = None,
    latency: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Latency table of the device: of `profile`, or a design's latency_table.json."
        ),
    ] = None,
    pick: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Choose on the trajectory of this finished search (or design)."),
    ] = None,
    max_latency: options.MaxLatency = None,
    max_parameters: options.MaxParameters = None,
    max_memory: options.MaxMemory = None,
    min_mes: options.MinMes = None,
    method: Annotated[
        str,
        typer.Option(metavar="NAME", callback=options.one_of(lambda: ("joint",)), help="The search method: joint."),
    ] = "joint",
    calibration: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Training images from which norms take their statistics; 0: as trained in the supernet.",
        ),
    ] = 128,
    json: options.Json = False,
) -> None:
    """Search a trained supernet under budgets.

    The fine-grained joint search on size and speed (Algorithm 1 of EfficientFormerV2). Give --supernet,
    --latency, --out and at least one budget; all budgets given must hold. Writes architecture.json (the
    network found, for `train`), search.jsonl (every action that was evaluated) and front/ (the architecture
    after each step).

    With --pick nothing is searched: the most accurate state of a finished search that meets the budgets is
    printed, with the path of its architecture.

    \b
    Examples:
      pocketformer search --supernet runs/mine --latency runs/mine/latency_table.json \\
        --max-latency 1ms --out runs/search
      pocketformer search --pick runs/search --max-parameters 800k
    """
    from pocketformer.errors import UserError
    from pocketformer.pipelines import searches

    limits = options.budgets(max_latency, max_parameters, max_memory, min_mes)
    if pick is not None:
        if supernet or latency or out:
            raise UserError("--pick chooses on a finished search: leave out --supernet, --latency and --out")
        found = searches.pick(pick, limits, min_mes)
    elif supernet is None or latency is None or out is None:
        raise UserError("give --supernet, --latency and --out, or --pick")
    else:
        found = searches.search(supernet, latency, limits, min_mes, calibration, out)
    if json:
        options.print_json(found)
        return
    print(
        f"step {found['step']}: {found['parameters']:,} parameters, {found['latency']:.3f} ms by the latency table, "
        f"accuracy {found['accuracy']:.1%} on search with the supernet's weights"
    )
    print(f"architecture: {found['file']}")
