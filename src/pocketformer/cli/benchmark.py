"""`benchmark`: latency of networks side by side on this device."""

from typing import Annotated

import typer

from pocketformer.cli import options


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Published names, architecture.json files, folders with one, exported files.",
            show_default=False,
        ),
    ],
    runtime: options.Runtime = "onnxruntime",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    rounds: Annotated[int, typer.Option(metavar="N", min=5, help="Samples of each network.")] = 30,
    json: options.Json = False,
) -> None:
    """Time networks side by side on this device.

    All are timed in turn, round by round, beside MobileNetV2 x1.0 at the same input size; ratios to it carry
    to other devices better than milliseconds do. Exported files are timed as they are; names and
    architectures with random weights and 1000 classes. Writes no files.

    \b
    Example:
      pocketformer benchmark efficientformerv2_s0 runs/mine/exported/model.onnx
    """
    from pocketformer.cli.summary import aligned
    from pocketformer.pipelines.benchmarking import benchmark as run

    rows = run(models, runtime, threads, batch, rounds)
    if json:
        options.print_json({"runtime": runtime, "threads": threads, "batch": batch, "networks": rows})
        return
    print(f"{runtime}, {threads} thread(s), batch {batch}, {rounds} rounds; ratio: to MobileNetV2 x1.0 at that size")
    table = [("network", "median", "spread", "ratio", "95 % interval")]
    for row in rows:
        low, high = row["ratio95"]
        ms = (f"{row['median_ms']:.3f} ms", f"{row['spread_ms']:.3f} ms")
        table.append((row["name"], *ms, f"{row['ratio']:.2f}", f"{low:.2f} to {high:.2f}"))
    print(aligned(table))
