"""`profile`: the latency table of a space on this device."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def profile(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write (JSON).")],
    space: Annotated[
        str,
        typer.Option(
            metavar="SPACE",
            help="Search space: a shipped name (see `pocketformer models`) or the path of a .yaml file.",
        ),
    ],
    runtime: options.Runtime = "onnxruntime",
    classes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Classes of the head: as many as your data has.")
    ] = 1000,
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    rounds: Annotated[int, typer.Option(metavar="N", min=2, help="Samples of each candidate.")] = 30,
    networks: Annotated[int, typer.Option(metavar="N", min=1, help="Whole networks that correct the table.")] = 24,
    checks: Annotated[int, typer.Option(metavar="N", min=0, help="Further networks that check it.")] = 8,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure this device: the latency table of a space.

    What every block of the space costs, on the graph as it is deployed. Blocks are timed in chains, corrected
    by whole random networks, and checked on networks that were not used; the error is printed and kept in the
    table. Interrupted, the same command goes on where it was (in .FILE.work beside FILE, removed at the end).

    \b
    Example:
      pocketformer profile --space pocket64 --classes 6 --out table.json
    """
    from pocketformer.pipelines.profiling import profile_file
    from pocketformer.pipelines.settings import ProfileSettings

    settings = ProfileSettings(threads, batch, rounds, networks, checks)
    table = profile_file(space, runtime, classes, settings, seed, out)
    found = {"table": str(out), "entries": len(table.entries), "constant_ms": table.constant}
    found |= {"mobilenetv2_ms": table.unit, "largest_ms": table.reference.latency}
    if table.check:
        found |= {"check_mean_error": table.check.mean, "check_worst_error": table.check.worst}
    if json:
        options.print_json(found)
        return
    print(
        f"{out}: {len(table.entries)} blocks of {table.space}, {classes} classes, on {runtime}, "
        f"{threads} thread(s), batch {batch}"
    )
    print(f"largest subnet {table.reference.latency:.3f} ms, MobileNetV2 x1.0 at this size {table.unit:.3f} ms")
    if table.check:
        count = len(table.check.networks)
        print(f"error on {count} unseen networks: mean {table.check.mean:.1%}, worst {table.check.worst:.1%}")
