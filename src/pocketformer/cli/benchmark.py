"""`benchmark`: latency of networks side by side on this device."""

from typing import Annotated

import typer

from pocketformer.cli import options


def benchmark(
    models: Annotated[
        list[str], typer.Argument(help="Published names, architecture.json files, run folders, exported files.")
    ],
    runtime: options.Runtime = "onnxruntime",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    rounds: Annotated[int, typer.Option(min=5, help="Samples of each.")] = 30,
    json: options.Json = False,
) -> None:
    """Latency of named models, architectures or exported files: interleaved, as ratios to MobileNetV2 (x1.0)."""
    from pocketformer.pipelines.benchmarking import benchmark as run

    rows = run(models, runtime, threads, batch, rounds)
    if json:
        options.print_json({"runtime": runtime, "threads": threads, "batch": batch, "networks": rows})
        return
    print(f"{runtime}, {threads} thread(s), batch {batch}, {rounds} rounds; ratio to MobileNetV2 x1.0 at the same size")
    for row in rows:
        low, high = row["ratio95"]
        print(
            f"  {row['name']:<36} {row['median_ms']:>9.3f} ms (spread {row['spread_ms']:.3f})   "
            f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
