"""Lower precisions after training: how much faster than float32 is each, on each runtime?

    python benchmarks/quantised.py --runtimes onnxruntime openvino executorch

Writes benchmarks/results/quantised.json: `pocketformer.export` writes a network (new weights, perturbed) in float32 and
in the lower precision, verifies both, and the two files are timed in turn, in pairs. What int8 costs in accuracy
depends on the trained network: `pocketformer export --int8` measures it on yours.
"""

import argparse
import platform
import tempfile
from pathlib import Path

import torch

from deployed import perturbed, versions
from paired import paired_sessions, ratio
from pocketformer import create_model
from pocketformer.deploy import SUFFIXES, export, format_for
from pocketformer.devices.host import host
from pocketformer.errors import UserError, WorkError
from pocketformer.files import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "quantised.json"
SESSIONS, ROUNDS = 8, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", required=True)
    parser.add_argument("--model", default="efficientformerv2_s0")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = perturbed(create_model(args.model))
    images = torch.nn.functional.interpolate(torch.randn(64, 3, 28, 28), size=model.resolution, mode="bilinear")
    results = read_json(args.out) if args.out.exists() else {}
    machine = host() | {"machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    for runtime in args.runtimes:
        for precision in format_for(runtime).PRECISIONS:
            if precision != "float32":
                row = measured(model, images, runtime, precision) | {"machine": machine, "versions": versions()}
                results[f"{runtime} {args.model} {precision}"] = row
                write_json(args.out, results)
                print(runtime, precision, row, flush=True)


def measured(model: torch.nn.Module, images: torch.Tensor, runtime: str, precision: str) -> dict:
    """The ratio of latencies to float32's, with its 95 % interval."""
    format = format_for(runtime).NAME
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}{SUFFIXES[format]}" for name in ("float32", precision)}
        try:
            report = export(
                model,
                paths[precision],
                images[:4],
                format,
                precision=precision,
                calibration=images if precision == "int8" else None,
                float32=paths["float32"],
            )
        except (UserError, WorkError) as error:
            return {"refused": str(error)}
        middle, low, high = ratio(paired_sessions(paths, runtime, 1, SESSIONS, ROUNDS, 0), precision, "float32")
    row = {"ratio": middle, "low": low, "high": high}
    return {name: round(value, 4) for name, value in row.items()} | {"mb": round(report.bytes / 1e6, 2)}


if __name__ == "__main__":
    main()
