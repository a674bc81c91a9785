"""Deployed networks: is what we export right, and how fast is it against timm's model, on every runtime?

    python benchmarks/deployed.py right --runtimes onnxruntime openvino torch
    python benchmarks/deployed.py fast --runtimes onnxruntime openvino --threads 1 2

Both write benchmarks/results/deployed.json as they go, and skip what it holds already (--again measures anew).

`right` exports networks with perturbed weights by `pocketformer.export`, whose verification refuses differences
above 1e-3 of the logits' standard deviation, and notes the largest difference. `fast` writes our fused network
and timm's model (in evaluation mode, both heads) by the same exporter and times the two files in turn, in pairs;
each of `--runs` runs loads them anew `--sessions` times. The runtime "eager" is PyTorch without any file: timm's
model as it is, and `eager(fuse(model))`.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import timm
import torch

from paired import paired_sessions, ratio
from pocketformer import SearchSpace, create_model, eager, fuse
from pocketformer.architecture import NAMES, Architecture
from pocketformer.deploy import SUFFIXES, export, format_for
from pocketformer.devices.host import host
from pocketformer.devices.measure import interleave
from pocketformer.errors import UserError, WorkError
from pocketformer.files import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "deployed.json"
PACKAGES = ("torch", "timm", "onnxruntime", "openvino", "nncf", "executorch", "ai-edge-litert", "litert-torch")
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("right", "fast"))
    parser.add_argument("--runtimes", nargs="+", required=True)
    parser.add_argument("--models", nargs="+", help="names, or 'random N' as randomN; all: the issue's full list")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8, help="of pairs, a session")
    parser.add_argument("--sessions", type=int, default=8, help="of a run; even: each is loaded last as often")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = read_json(args.out) if args.out.exists() else {"right": {}, "fast": {}}
    machine = host() | {"machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    kept = results[args.what]
    names = args.models or ["all"]
    if names == ["all"]:
        families = [n for n in NAMES if "v2" in n]
        randoms = [f"random{i}" for i in range(10)]
        names = [*families, "efficientformer_l1", *randoms] if args.what == "right" else families
    for runtime in args.runtimes:
        for name in names:
            if args.what == "right" and f"{runtime} {name}" in kept and not args.again:
                continue
            rows = right(runtime, name) if args.what == "right" else fast(runtime, name, args, kept)
            for key, row in rows:
                if key not in kept or args.again:
                    kept[key] = row | {"machine": machine, "versions": versions()}
                    write_json(args.out, results)
                    print(key, row, flush=True)
    print(f"in all: {summary(kept, args.what)}")


def architecture(name: str) -> Architecture:
    if name.startswith("random"):
        return SearchSpace.named("efficientformerv2").sample(int(name.removeprefix("random")))
    return Architecture.named(name)


def right(runtime: str, name: str) -> Iterator[tuple[str, dict]]:
    torch.manual_seed(0)
    model = perturbed(create_model(architecture(name)))
    images = torch.nn.functional.interpolate(torch.randn(BATCH, 3, 28, 28), size=model.resolution, mode="bilinear")
    format = format_for(runtime).NAME
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export(model, Path(folder) / f"model{SUFFIXES[format]}", images, format)
        except (UserError, WorkError) as error:
            yield f"{runtime} {name}", {"refused": str(error)}
            return
    found = report.verified
    difference = found.max_difference / found.logits_std
    row = {"difference": difference, "images": found.images, "mb": round(report.bytes / 1e6, 2)}
    yield f"{runtime} {name}", row | {"seconds": round(report.seconds, 1), "details": report.details}


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Everything moved away from its initial value, so that a layer left out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def fast(runtime: str, name: str, args: argparse.Namespace, kept: dict) -> Iterator[tuple[str, dict]]:
    wanted = {f"{runtime} {name} threads {t} run {r}": (t, r) for r in range(args.runs) for t in args.threads}
    wanted = {key: pair for key, pair in wanted.items() if key not in kept or args.again}
    if not wanted:
        return
    torch.manual_seed(0)
    ours = fuse(create_model(name))
    pair = {"ours": eager(ours) if runtime == "eager" else ours, "timm": timm.create_model(name).eval()}
    with tempfile.TemporaryDirectory() as folder:
        paths = {} if runtime == "eager" else written(pair, runtime, Path(folder))
        for key, (threads, run) in wanted.items():
            if runtime == "eager":
                sessions = plain(pair, threads, args, run)
            else:
                sessions = paired_sessions(paths, runtime, threads, args.sessions, args.rounds, run)
            middle, low, high = ratio(sessions, "ours", "timm")
            ms = {f"{side}_ms": statistics.median(t for s in sessions for t in s[side]) for side in pair}
            row = {"ratio": middle, "low": low, "high": high, **ms}
            yield key, {name: round(value, 4) for name, value in row.items()} | {"pairs": args.sessions * args.rounds}


def written(pair: dict, runtime: str, folder: Path) -> dict[str, Path]:
    format = format_for(runtime)
    paths = {side: folder / f"{side}{SUFFIXES[format.NAME]}" for side in pair}
    for side, module in pair.items():
        format.write_quick(module, torch.randn(1, 3, 224, 224), paths[side])
    return paths


def plain(pair: dict, threads: int, args: argparse.Namespace, run: int) -> list[dict[str, list[float]]]:
    """As `paired_sessions`, without files."""
    x, sessions = torch.randn(1, 3, 224, 224), []
    calls = {side: partial(module, x) for side, module in pair.items()}
    torch.set_num_threads(threads)
    for session in range(args.sessions):
        with torch.inference_mode():
            sessions.append(interleave(calls, args.rounds, seed=run * args.sessions + session, fastest=True))
    torch.set_num_threads(1)
    return sessions


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "processors": str(os.cpu_count())}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def summary(kept: dict, what: str) -> str:
    if what == "right":
        refused = [key for key, row in kept.items() if "refused" in row]
        worst = max((row["difference"] for row in kept.values() if "difference" in row), default=float("nan"))
        return f"{len(kept)} networks, largest difference {worst:.1e} of the logits' std, refused: {refused or 'none'}"
    worst = max(kept, key=lambda key: kept[key]["high"])
    return f"{len(kept)} rows, largest upper bound {kept[worst]['high']} ({worst})"


if __name__ == "__main__":
    sys.exit(main())
