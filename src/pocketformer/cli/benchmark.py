"""`benchmark`: latency of networks side by side on this device, and of the operators that they are made of."""

from pathlib import Path
from typing import Annotated

import typer

from pocketformer.cli import options
from pocketformer.errors import UserError, WorkError

_ENDINGS = (".svg", ".html")


def _check_plot(value: Path | None) -> Path | None:
    if value is not None and value.suffix not in _ENDINGS:
        raise typer.BadParameter(f"{str(value)!r} must end in {' or '.join(_ENDINGS)}")
    return value


def benchmark(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Published names, architecture.json files, folders with one, exported files (of .pt2 only your own: "
            "they can run code), networks of timm (NAME or timm:NAME). [default: --peers]",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also all that V2's Table 2 lists and timm has, and newer networks.")
    ] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="Instead: V1's latency analysis (Sec. 3), operator by operator.")
    ] = False,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = None,
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    activation: Annotated[
        str,
        typer.Option(
            metavar="own|relu",
            callback=options.one_of(lambda: ("own", "relu")),
            help="The networks' own activations, or ReLU in all, as on the paper's Pixel 6.",
        ),
    ] = "own",
    rounds: Annotated[int, typer.Option(metavar="N", min=5, help="Samples of each network.")] = 30,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of weights and orders.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the result with all samples (JSON).")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=_check_plot, help="Also draw it: an image (.svg) or a page (.html)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Time networks side by side on this device: V2's Table 2, here.

    All are timed in turn, round by round, beside MobileNetV2 x1.0: ratios to it carry to other devices better
    than milliseconds do. Without MODEL: the seven published networks, the search space's largest member, the
    peers of the paper's table and newer ones, against MobileNetV2 at 224 px; with MODEL alone, each against
    MobileNetV2 at its own input size. Exported files are timed as they are (one that takes another number of
    images than --batch is refused); all others with random weights as they are deployed (networks of timm
    re-parameterised and fused where timm can), with 1000 classes, or a trained folder's own. A network that the
    exporter or the runtime fails on is named and left out. The paper used batch 64 on its GPU.

    --operators compares patch embeddings, token mixers, reshapes, MLPs and activations at the shapes of
    efficientformer_l1, and says which of the paper's observations hold here.

    \b
    Examples (without --out and --plot, they write no files):
      pocketformer benchmark efficientformerv2_s0 repvit_m0_9 runs/mine/exported/model.onnx
      pocketformer benchmark --activation relu --out table2.json --plot table2.svg
      pocketformer benchmark --operators --runtime openvino
    """
    from pocketformer import files
    from pocketformer.cli import benchmark_text as text
    from pocketformer.report import benchmarks as plots

    for path in (out, plot):
        if path is not None:
            files.check_target(path)
    settings = {"threads": threads, "batch": batch, "rounds": rounds, "device": device, "seed": seed}
    if operators:
        if models or peers or activation != "own":
            raise UserError("--operators compares operators: no MODEL, --peers or --activation with it")
        from pocketformer.pipelines.operators import measure_operators

        found = measure_operators(runtime, **settings)
        drawn = plots.operator_ratios(found) if plot else None
    else:
        from pocketformer.pipelines import lineup
        from pocketformer.pipelines.benchmarking import benchmark as run

        if plot and models and not peers and not any(lineup.named(name).top1 for name in models):
            raise UserError("nothing to draw: of none of these networks a paper prints the accuracy")
        found = run(models or [], runtime, peers=peers or not models, activation=activation, **settings)
        drawn = plots.accuracy_latency(found) if plot else None
    if json:
        options.print_json(text.without_samples(found))
    else:
        print(text.operators_text(found) if operators else text.networks_text(found))
    if out is not None:
        files.write_json(out, found)
    if drawn is not None:
        plots.save_plot(drawn, plot)
    elif plot is not None:
        raise WorkError("nothing to draw: none of the networks whose accuracy a paper prints could be timed")
