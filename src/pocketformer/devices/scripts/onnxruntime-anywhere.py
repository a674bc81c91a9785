"""Times all models by ONNX Runtime. Needs onnxruntime and numpy, not pocketformer: python onnxruntime-anywhere.py

Writes results.json, which `pocketformer profile --import results.json` reads.
"""

import argparse
import datetime
import hashlib
import json
import platform
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import onnxruntime


def open_model(path: Path, threads: int):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    feeds = {given.name: np.random.default_rng(0).standard_normal(given.shape, dtype=np.float32)}
    return lambda: session.run(None, feeds)


def fastest(run, calls: int) -> float:
    """ms of the fastest of some calls, after one that is not timed."""
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    return min(times)


def check(models: Path, manifest: dict) -> None:
    """Times of files that a copy damaged, or of another emission, would be of no use."""
    for model in manifest["models"]:
        path = models / model["file"]
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != model["sha256"]:
            raise SystemExit(f"models/{model['file']} is not the file of manifest.json: copy the folder again")


def device() -> str:
    """A board's model, else the processor's name."""
    cpu = "/proc/cpuinfo"
    for file, start in (("/proc/device-tree/model", ""), (cpu, "model name"), (cpu, "Hardware")):
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        if found := [line for line in lines if line.startswith(start)]:
            return found[0].rpartition(": ")[2].strip("\0 ")
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        if name := subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.strip():
            return name
    return platform.processor() or platform.machine()


class Progress:
    """Lines for who waits: one when a group is done, and one every ten seconds in between."""

    def __init__(self, passes: int, models: int):
        self.passes, self.models, self.last = passes, models, time.monotonic()

    def tell(self, number: int, done: int, doing: str = "") -> None:
        if not doing or time.monotonic() - self.last >= 10:
            self.last = time.monotonic()
            print(f"pass {number} of {self.passes}: {done} of {self.models} models{doing}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="samples of each model and pass")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--group", type=int, default=12, help="models that are loaded together")
    args = parser.parse_args()
    here = Path(__file__).resolve().parent
    manifest = json.loads((here / "manifest.json").read_text(encoding="utf-8"))
    check(here / "models", manifest)
    names = sorted(path.stem for path in (here / "models").glob("*.onnx") if path.stem != "reference")
    rng = random.Random(0)
    passes = []
    progress = Progress(args.passes, len(names))
    print(f"{len(names)} models in {args.passes} passes; results.json is written at the end", flush=True)
    for number in range(1, args.passes + 1):
        rng.shuffle(names)
        for start in range(0, len(names), args.group):
            group = [*names[start : start + args.group], "reference"]
            opened = rng.sample(group, len(group))
            runs = {}
            for name in opened:
                runs[name] = open_model(here / "models" / f"{name}.onnx", args.threads)
                progress.tell(number, start, f", opening {name}")
            calls = {name: min(max(int(2 / max(fastest(run, 2), 1e-3)), 2), 20) for name, run in runs.items()}
            samples = {name: [] for name in group}
            for done in range(args.rounds):
                for name in rng.sample(group, len(group)):
                    samples[name].append(round(fastest(runs[name], calls[name]), 6))
                    progress.tell(number, start, f", round {done + 1} of {args.rounds} of the next {len(group)}")
            passes.append(samples)
            progress.tell(number, min(start + args.group, len(names)))
    results = {
        "manifest": manifest["id"],
        "device": device(),
        "os": f"{platform.system()} {platform.release()}",
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "threads": args.threads,
        "date": datetime.date.today().isoformat(),
        "passes": passes,
    }
    (here / "results.json").write_text(json.dumps(results), encoding="utf-8")
    print("done: copy results.json back, then: pocketformer profile --import results.json --out table.json")


if __name__ == "__main__":
    main()
