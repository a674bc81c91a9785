"""`profile`: the latency table of a space on this device."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options


def profile(
    out: Annotated[Path, typer.Option(help="Where to write the table (JSON).")],
    space: Annotated[str, typer.Option(help="Search space: a shipped name or the path of a YAML file.")],
    runtime: options.Runtime = "onnxruntime",
    classes: Annotated[int, typer.Option(min=1, help="Classes of the head.")] = 1000,
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each candidate.")] = 30,
    networks: Annotated[int, typer.Option(min=1, help="Whole networks that correct the table.")] = 24,
    checks: Annotated[int, typer.Option(min=0, help="Further networks that check it.")] = 8,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measure this device: what every block of a space costs, on the graph as it is deployed.

    Blocks are timed in chains, corrected by whole random networks, and checked on networks that were not used;
    the error is printed and kept in the table. Interrupted, it goes on where it was.
    """
    import shutil

    from pocketformer.architecture import SearchSpace
    from pocketformer.errors import UserError
    from pocketformer.pipelines.profiling import profile_space
    from pocketformer.pipelines.settings import ProfileSettings

    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the table's file")
    settings = ProfileSettings(threads, batch, rounds, networks, checks)
    work = out.with_name(f".{out.name}.work")
    table = profile_space(SearchSpace.named(space), runtime, classes, settings, seed, work)
    table.save(out)
    shutil.rmtree(work, ignore_errors=True)
    found = {"table": str(out), "entries": len(table.entries), "constant_ms": table.constant}
    found |= {"mobilenetv2_ms": table.unit, "largest_ms": table.reference.latency}
    if table.check:
        found |= {"check_mean_error": table.check.mean, "check_worst_error": table.check.worst}
    if json:
        options.print_json(found)
        return
    print(f"{out}: {len(table.entries)} blocks of {table.space} on {runtime}, {threads} thread(s), batch {batch}")
    print(f"largest subnet {table.reference.latency:.3f} ms, MobileNetV2 at this size {table.unit:.3f} ms")
    if table.check:
        count = len(table.check.networks)
        print(f"error on {count} unseen networks: mean {table.check.mean:.1%}, worst {table.check.worst:.1%}")
