"""What `Architecture.peak_memory` says beside what ONNX Runtime has alive, and plans, for the same network.

    python benchmarks/memory.py            # writes benchmarks/results/memory.json

Each network is exported as it is deployed, and its file looked at in two ways.

*Alive*: the runtime's profile gives the size of each operator's output in its own optimised graph, in the order of
execution. The figure is the largest sum of those that are still needed, without any operator running in place; a
change of shape takes nothing.

*Planned*: three runs in a process of its own, with an arena that grows by exactly what is asked of it and logs that. In
the first run the runtime asks for one tensor after another; from then on it has a plan, and asks for one block that
holds all activations: that block's size is its own figure of the peak. It exceeds what is alive where the plan leaves
holes.

The image is the caller's and is in neither.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from pocketformer import Architecture, SearchSpace
from pocketformer.architecture import NAMES
from pocketformer.deploy import format_for
from pocketformer.devices.candidates import write_network
from pocketformer.devices.host import host
from pocketformer.devices.measure import spearman

RESULTS = Path(__file__).parent / "results" / "memory.json"
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
REQUEST, TOTAL = re.compile(r"\(requested\) num_bytes: (\d+)"), re.compile(r"Total allocated bytes: (\d+)")
CLASSES = 10


def run_and_log(path):
    """In a child process: three runs, with the arena's requests on stderr."""
    ort.set_default_logger_severity(1)
    # Grows by what is asked for, and keeps what it has.
    growth = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(where, ort.OrtArenaCfg(growth))
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 1, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.use_env_allocators", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    for i in range(3):
        print(f"RUN {i}", file=sys.stderr, flush=True)
        session.run(None, {given.name: np.zeros(given.shape, np.float32)})


def measured(path):
    """Bytes: of the planned block, and of what the arena took in the first run, without a plan."""
    command = [sys.executable, __file__, "--child", str(path)]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    begun, first, second, _ = re.split(r"RUN \d", log)
    requests = [int(n) for n in REQUEST.findall(second)]
    if len(requests) != 1:
        raise SystemExit(f"{path.name}: {len(requests)} requests in the second run; the plan is one")
    before = int((TOTAL.findall(begun) or [0])[-1])
    reserved = int(TOTAL.findall(first)[0]) - int(REQUEST.findall(first)[0])  # weights, which no line totals
    return {"planned": requests[0], "first_run": int(TOTAL.findall(first)[-1]) - max(before, reserved)}


def alive(path):
    """Bytes of the largest set of outputs that are needed at once, in the runtime's own graph."""
    optimised = path.with_name("optimised.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 3, True
    options.optimized_model_filepath, options.profile_file_prefix = str(optimised), str(path.with_name("profile"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    session.run(None, {given.name: np.zeros(given.shape, np.float32)})
    profile = session.end_profiling()
    events = json.loads(Path(profile).read_text())
    os.remove(profile)
    nodes = {node.name: node for node in onnx.load(optimised).graph.node}
    ran = [(nodes[name], e["args"]) for e in events if (name := e["name"].removesuffix("_kernel_time")) != e["name"]]
    place: dict[str, str] = {}  # tensor to the tensor whose bytes it has
    for node, _ in ran:
        first = node.input[0] if node.op_type in VIEWS else node.output[0]
        place[node.output[0]] = place.get(first, first)
    last = {place.get(name, name): i for i, (node, _) in enumerate(ran) for name in node.input}
    sizes: dict[str, int] = {}
    peak = 0
    for i, (node, args) in enumerate(ran):
        if (name := place[node.output[0]]) == node.output[0]:
            sizes[name] = int(args["output_size"])
        peak = max(peak, sum(sizes.values()))
        sizes = {name: size for name, size in sizes.items() if last.get(name, i + 1) > i}
    return peak


def networks(count, seed):
    """(group, name, architecture): the published ones, and random members of the shipped spaces."""
    for name in NAMES:
        yield "published, 224 px", name, Architecture.named(name)
    for space in map(SearchSpace.named, ("pocket28", "pocket64", "efficientformerv2")):
        yield space.name, "largest", space.largest
        yield space.name, "smallest", space.smallest
        for i in range(count):
            yield space.name, f"random {i}", space.sample(seed + i)


def agreement(rows, kind):
    """Of a figure of the runtime's with the closed form."""
    ratios = sorted(row[kind] / row["closed_form"] for row in rows)
    return {
        "spearman": spearman([row["closed_form"] for row in rows], [row[kind] for row in rows]),
        "ratio": {"least": ratios[0], "median": ratios[len(ratios) // 2], "most": ratios[-1]},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6, help="random members of each space")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--groups", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_and_log(args.child)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for group, name, architecture in networks(args.count, args.seed):
            if args.groups and group not in args.groups:
                continue
            path = Path(folder) / "network.onnx"
            write_network(format_for("onnxruntime"), architecture, CLASSES, architecture.design.resolution, path)
            own = architecture.peak_memory(num_classes=CLASSES)
            rows.append({"group": group, "name": name, "closed_form": own, "alive": alive(path), **measured(path)})
            mb = "".join(f"{rows[-1][k] / 1e6:9.3f} MB" for k in ("closed_form", "alive", "planned"))
            print(f"{group:<20}{name:<24}{mb}", flush=True)
    groups = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        groups[group] = {"networks": len(own), **{kind: agreement(own, kind) for kind in ("alive", "planned")}}
        print(group, json.dumps(groups[group]))
    found = {
        "what": "peak activation memory in bytes: closed form, alive and planned in ONNX Runtime; batch 1, float32",
        "command": " ".join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("pocketformer", "onnxruntime")}},
        "machine": host(),
        "groups": groups,
        "networks": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
