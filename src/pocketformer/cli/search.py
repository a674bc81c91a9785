"""`search`: find architectures on a trained supernet, or choose on a finished trajectory."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def search(
    out: Annotated[Path | None, typer.Option(help="Folder of the search.")] = None,
    supernet: Annotated[Path | None, typer.Option(help="A run of `supernet` or `design`.")] = None,
    latency: Annotated[Path | None, typer.Option(help="The device's latency table.")] = None,
    pick: Annotated[
        Path | None, typer.Option(help="Choose on the trajectory of this finished search instead.")
    ] = None,
    max_latency: options.MaxLatency = None,
    max_parameters: options.MaxParameters = None,
    max_memory: options.MaxMemory = None,
    min_mes: options.MinMes = None,
    method: Annotated[str, typer.Option(help="The search method: joint.")] = "joint",
    calibration: Annotated[
        int, typer.Option(min=0, help="Images of fit that calibrate the norms; 0: the switches' own.")
    ] = 128,
    json: options.Json = False,
) -> None:
    """The fine-grained joint search on size and speed (Algorithm 1).

    Writes OUT/search.jsonl (every evaluated and executed action), OUT/front/ (the architecture after each step)
    and OUT/architecture.json. Give at least one budget; all given ones must hold.
    """
    from pocketformer.errors import UserError
    from pocketformer.pipelines import searches

    limits = options.budgets(max_latency, max_parameters, max_memory)
    if not limits and options.check_min_mes(min_mes) is None:
        raise UserError("give a budget: --max-latency, --max-parameters, --max-memory or --min-mes")
    if method != "joint":
        raise UserError(f"no search method {method!r}; known: joint")
    if pick is not None:
        found = searches.pick(pick, limits, min_mes)
    elif supernet is None or latency is None or out is None:
        raise UserError("give --supernet, --latency and --out, or --pick")
    else:
        found = searches.search(supernet, latency, limits, min_mes, calibration, out)
    if json:
        options.print_json(found)
        return
    print(
        f"step {found['step']}: {found['parameters']:,} parameters, {found['latency']:.3f} ms by the table, "
        f"accuracy {found['accuracy']:.1%} on search with the supernet's weights"
    )
    print(f"architecture: {found['file']}")
