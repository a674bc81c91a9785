"""`search`: find architectures on a trained supernet, or choose on a finished trajectory."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import goals, options, training


def _methods() -> tuple[str, ...]:
    from pocketformer.pipelines.methods import METHODS

    return METHODS


def search(
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the search; the same command resumes it.")
    ] = None,
    supernet: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A folder of `supernet` or `design`.")] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Latency table of the device: of `profile`, or a design's latency_table.json. For several devices, "
            "each by name: --latency phone=a.json --latency laptop=b.json.",
        ),
    ] = None,
    energy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|[NAME=]2.5W",
            help="Energy as a metric: a table of mJ of each block (docs/devices.md), or the watts that the device "
            "draws, times its latency.",
        ),
    ] = None,
    pick: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Choose on the trajectory of this finished search (or design)."),
    ] = None,
    max_latency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]TIME",
            help="Budget of every device, or of one: 0.9ms, 900us, 0.9 (ms), or 50% of the largest subnet's by its "
            "table; phone=0.9ms. The table's latencies are 10th percentiles.",
        ),
    ] = None,
    max_parameters: options.MaxParameters = None,
    max_macs: options.MaxMacs = None,
    max_memory: options.MaxMemory = None,
    max_energy: Annotated[
        str | None,
        typer.Option(
            metavar="ENERGY", help="Budget: 2mJ, 500uJ, 2 (mJ), or 50% of the largest subnet's; with --energy."
        ),
    ] = None,
    min_mes: options.MinMes = None,
    alpha: options.Alpha = None,
    form: options.Form = "budget",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=options.one_of(_methods),
            help="joint, or what it is compared with (docs/method.md): random, uniform, evolution, nsga2, pruning, "
            "v1-scale; v1-slimming, of V1's supernets.",
        ),
    ] = "joint",
    evaluations: Annotated[
        str | None,
        typer.Option(
            metavar="N|FOLDER",
            help="Subnets that random, uniform, evolution or nsga2 may score; of a finished search: as many as it did.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="What random, evolution and nsga2 draw by.")] = 0,
    regrow: Annotated[
        bool,
        typer.Option(
            "--regrow", help="After each step, take one reverse move if the two together are a better action."
        ),
    ] = False,
    beam: Annotated[
        int, typer.Option(metavar="K", min=1, help="Follow the K best states of each step instead of one.")
    ] = 1,
    race: Annotated[
        bool,
        typer.Option("--race", help="The same decisions, each frontier evaluated only as far as they need."),
    ] = False,
    calibration: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Training images from which norms take their statistics; 0: as trained in the supernet.",
        ),
    ] = 128,
    data: options.Moved = None,
    device: training.Device = "cpu",
    workers: options.Workers = 2,
    json: options.Json = False,
) -> None:
    """Search a trained supernet under budgets.

    The fine-grained joint search on size and speed (Algorithm 1 of EfficientFormerV2). Give --supernet,
    --latency, --out and at least one budget; all budgets given must hold. Writes architecture.json (the
    network found, for `train`), search.jsonl (every action that was evaluated) and front/ (the architecture
    after each step). Also under `torchrun`.

    With --pick nothing is searched: the most accurate state of a finished search that meets the budgets is
    printed, with the path of its architecture.

    \b
    Examples:
      pocketformer search --supernet runs/mine --latency runs/mine/latency_table.json \\
        --max-latency 1ms --out runs/search
      pocketformer search --supernet runs/mine --latency phone=phone.json --latency tv=tv.json \\
        --max-latency phone=1.2ms --max-latency tv=3ms --alpha size=0.25 --out runs/both
      pocketformer search --supernet runs/mine --latency table.json --max-latency 1ms \\
        --method evolution --evaluations runs/search --out runs/evolved
      pocketformer search --pick runs/search --max-parameters 800k
    """
    from pocketformer.errors import UserError
    from pocketformer.pipelines import searches
    from pocketformer.pipelines.methods import Asked
    from pocketformer.search import Walk

    latencies = goals.latency_budgets(max_latency or [])
    limits = goals.budgets(None, max_parameters, max_memory, min_mes, max_macs, max_energy, latencies)
    if pick is not None:
        asked_too = {
            "--supernet": supernet,
            "--latency": latency,
            "--energy": energy,
            "--out": out,
            "--alpha": alpha,
            "--form": form != "budget",
            "--method": method != "joint",
            "--evaluations": evaluations,
            "--regrow": regrow,
            "--seed": seed,
            "--beam": beam != 1,
            "--race": race,
            "--calibration": calibration != 128,
            "--data": data,
        }
        if extra := [name for name, given in asked_too.items() if given]:
            raise UserError(f"--pick chooses on a finished search: leave out {', '.join(extra)}")
        found = searches.pick(pick, limits, min_mes)
    elif supernet is None or not latency or out is None:
        raise UserError("give --supernet, --latency and --out, or --pick")
    else:
        if max_energy is not None and energy is None:
            raise UserError(f"--max-energy {max_energy}: give --energy too, a table of the device or its watts")
        tables, power = goals.tables(latency), goals.energy(energy)
        goal = searches.Goal(tables, limits, min_mes, goals.alphas(alpha, devices=True), form, power)
        asked = Asked(method, evaluations, seed, Walk(regrow, beam), race)
        compute = training.compute(device, "float32", False, 1, False, False)
        found = searches.search(supernet, goal, asked, calibration, out, compute, workers, data)
    if json:
        options.print_json(found)
        return
    from pocketformer.search.metrics import amount

    costs = ", ".join(amount(name, cost["value"]) for name, cost in found["costs"].items())
    print(
        f"step {found['step']}: {costs} (latency by the table), MES {found['mes']:.1f}, "
        f"accuracy {found['accuracy']:.1%} on search with the supernet's weights"
    )
    if "recalibration" in found:
        before, after = (found["recalibration"][kind] for kind in ("before", "recalibrated"))
        print(
            f"accuracy {after['accuracy']:.1%} on search with norms re-calibrated on fit, "
            f"{before['accuracy']:.1%} with those of the supernet"
        )
    print(f"architecture: {found['file']}")
