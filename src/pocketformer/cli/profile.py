"""`profile`: the latency table of a space on this device, or on one that cannot run Python."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pocketformer.cli import options
from pocketformer.errors import UserError


def profile(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The table to write (JSON).")] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE",
            help="Search space: a shipped name (see `pocketformer models`) or the path of a .yaml file.",
        ),
    ] = None,
    runtime: options.Runtime = "onnxruntime",
    classes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Classes of the head: as many as your data has.")
    ] = 1000,
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    device: options.Device = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=2, help="Samples of each candidate; fewer are taken of slow ones.")
    ] = 30,
    networks: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Whole networks that correct the table; 0: single blocks alone."),
    ] = 64,
    checks: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Further networks that check it, besides the published ones; 0: no check."
        ),
    ] = 20,
    seed: options.Seed = 0,
    emit_models: Annotated[
        Path | None,
        typer.Option(
            "--emit-models", metavar="FOLDER", help="Measure nothing: write what would be timed as model files."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            callback=options.check_format,
            help="With --emit-models: onnx, litert, executorch, coreml … [default: what --runtime runs]",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="With --emit-models: float32; float16 where the format has it.")
    ] = "float32",
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="PATH",
            help="Measure nothing: read times of emitted models, from a results.json, a .csv or a folder of logs.",
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --import: the models' manifest.json. [default: the one beside it]"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure this device: the latency table of a space.

    What every block of the space costs, on the graph as it is deployed. Blocks are timed in chains, corrected
    by whole random networks, and checked on networks that were not used, in two passes; the error is printed
    and kept in the table. Interrupted, the same command goes on where it was (in .FILE.work beside FILE, removed
    at the end).

    For a device that cannot run Python, --emit-models writes the models with a manifest and a recipe, and
    --import makes the table of the times measured there (docs/devices.md).

    \b
    Examples:
      pocketformer profile --space pocket64 --classes 6 --out table.json
      pocketformer profile --space pocket64 --classes 6 --format litert --emit-models phone
      pocketformer profile --import phone/logs --out table.json
    """
    from pocketformer.architecture import SearchSpace
    from pocketformer.pipelines import profiling
    from pocketformer.pipelines.settings import ProfileSettings

    settings = ProfileSettings(threads, batch, rounds, networks, checks, device)
    if emit_models is not None and import_ is not None:
        raise UserError("--emit-models and --import are steps of their own; give one of them")
    if emit_models is not None:
        _only_with(out is not None, "--out", "a measurement or --import")
        _only_with(manifest is not None, "--manifest", "--import")
        chosen = format or profiling.format_of_runtime(runtime)
        needed = _needed(space, "--space")
        _print_emitted(
            profiling.emit_models(needed, chosen, classes, settings, seed, emit_models, precision), emit_models, json
        )
        return
    _only_with(format is not None, "--format", "--emit-models")
    _only_with(precision != "float32", "--precision", "--emit-models")
    target = _needed(out, "--out")
    if import_ is not None:
        _only_with(space is not None, "--space", "a measurement or --emit-models (the manifest names the space)")
        _print_table(profiling.import_file(import_, manifest, target), target, json)
        return
    _only_with(manifest is not None, "--manifest", "--import")
    needed = _needed(space, "--space")
    table = profiling.profile_file(needed, runtime, classes, settings, seed, target)
    _print_table(table, target, json, SearchSpace.named(needed))


def _only_with(given: bool, option: str, others: str) -> None:
    if given:
        raise UserError(f"{option} belongs to {others}")


def _needed(value: Any, option: str) -> Any:
    if value is None:
        raise UserError(f"{option} is missing")
    return value


def _print_emitted(manifest: Any, folder: Path, json: bool) -> None:
    found = {"folder": str(folder), "models": len(manifest.models), "bytes": manifest.bytes, "id": manifest.id}
    if json:
        options.print_json(found)
        return
    name = manifest.settings["model_format"]
    print(f"{folder}: {len(manifest.models)} {name} models, {manifest.bytes / 1e6:,.0f} MB, and manifest.json")
    print(f"{folder / 'README.txt'} says how to time them; then: pocketformer profile --import … --out table.json")


def _print_table(table: Any, out: Path, json: bool, space: Any = None) -> None:
    from pocketformer.pipelines.tables import told

    about, check = table.fingerprint, table.check
    found = {"table": str(out), "entries": len(table.entries), "constant_ms": table.constant}
    found |= {"mobilenetv2_ms": table.unit, "largest_ms": table.reference.latency}
    if check:
        found |= {"check_networks": len(check.networks), "check_mean_error": check.mean}
        found |= {"check_worst_error": check.worst, "check_repeatability": check.repeatability}
        found |= {"check_spearman": check.spearman, "check_bias": check.bias, "check_range": table.checked_range}
    if space is not None:
        found["reference_error"] = table.reference_error(space)
    if json:
        options.print_json(found)
        return
    threads = f", {about['threads']} thread(s)" if "threads" in about else ""
    print(
        f"{out}: {len(table.entries)} blocks of {table.space}, {table.num_classes} classes, on {about['runtime']}, "
        f"{about['device']}{threads}, batch {about['batch']}"
    )
    print(f"largest subnet {table.reference.latency:.3f} ms, MobileNetV2 x1.0 at this size {table.unit:.3f} ms")
    if text := told(table, space):
        print(text + (f"; rank correlation {check.spearman:.3f}" if check and check.spearman is not None else ""))
