"""Does a latency table predict whole networks it has never seen, in a measuring run of its own? (contract 6.10)

    python benchmarks/latency_table.py --runtime onnxruntime --out benchmarks/results/latency_table_onnxruntime.json

Profiles the space (or takes --table), then measures again: the published networks of the space and 20 random ones
that the profile did not hold, from fresh files in new processes, twice. Both runs are normalised by the reference
network. The same check is put to a table that says MACs x constant, with the constant that fits the checked
networks best. Kill it and start it again: it goes on (in OUT.work). Exit code 1 if the table fails
or MACs pass, 2 for what cannot be measured.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from pocketformer import SearchSpace
from pocketformer.deploy import format_for
from pocketformer.devices import Check, CheckedNetwork, Entry, LatencyTable
from pocketformer.devices.bench import Bench
from pocketformer.devices.candidates import write_candidate
from pocketformer.devices.groups import Groups
from pocketformer.devices.host import host, packages
from pocketformer.devices.measure import undisturbed
from pocketformer.devices.plan import REFERENCE, Plan
from pocketformer.devices.table import space_blocks
from pocketformer.devices.whole import check_measured_here
from pocketformer.errors import UserError
from pocketformer.files import write_json
from pocketformer.pipelines.profiling import profile_file
from pocketformer.pipelines.refusals import check_table
from pocketformer.pipelines.settings import ProfileSettings
from pocketformer.progress import stage
from pocketformer.runs import differences
from pocketformer.runtimes import runtime

MEAN, OF_REPEATABILITY, WORST, SPEARMAN = 0.03, 1.5, 0.08, 0.98  # what a good table holds
GROUP = 12


def macs_table(table, space, networks):
    """A table of the same blocks that says MACs x constant, the constant least squares of relative errors on
    `networks`, pairs of an architecture and its measured ms."""
    ratios = [a.macs() / ms for a, ms in networks]
    constant = sum(ratios) / sum(r * r for r in ratios)
    blocks = space_blocks(space, table.num_classes)
    entries = {key: Entry(constant * block.macs()) for key, block in blocks.items()}
    rest = {"unit": table.unit, "space": table.space, "num_classes": table.num_classes}
    return LatencyTable(entries, 0.0, reference=table.reference, resolution=table.resolution, **rest)


def checked(table, plan, repeats):
    """The table's check on networks measured as `repeats`: name to ms in each pass."""
    return Check(
        tuple(
            CheckedNetwork(name, table.latency(plan.checks[name]), statistics.fmean(ms), tuple(ms))
            for name, ms in repeats.items()
        )
    )


def verdict(check):
    """The figures of a check, and whether it is passed."""
    allowed = max(MEAN, OF_REPEATABILITY * check.repeatability)
    passed = check.mean <= allowed and check.worst <= WORST and check.spearman >= SPEARMAN
    figures = {"mean_error": check.mean, "mean_allowed": allowed, "worst_error": check.worst, "worst_allowed": WORST}
    figures |= {"spearman": check.spearman, "spearman_needed": SPEARMAN, "repeatability": check.repeatability}
    return {**figures, "passed": bool(passed)}


def check_fits(table, path, space, args):
    """Raises `UserError` for a table that cannot be checked here, and for one that an earlier call with other
    arguments left."""
    about = table.fingerprint
    if args.table is None:
        names = ("runtime", "threads", "networks", "checks", "rounds", "seed")
        wanted = {**{name: getattr(args, name) for name in names}, "on": args.device}
        wanted |= {"space": space.name, "classes": args.classes}
        had = {**{name: about.get(name) for name in wanted}, "space": table.space, "classes": table.num_classes}
        if changed := differences(had, wanted):
            raise UserError(f"{path} is of an earlier call ({'; '.join(changed)}): remove it, or choose another --out")
    check_table(table, str(path), space, table.num_classes)
    check_measured_here(table, args.runtime, str(path))
    if not {"threads", "networks", "checks", "seed"} <= about.keys():
        raise UserError(f"{path} does not say which networks it was made from: only `profile` here makes such tables")


def measured(plan, table, args, folder):
    """The checking run, threads, device and batch being the table's: name to ms in each pass, normalised by the
    reference; and the raw groups."""
    about = table.fingerprint
    on, batch = about.get("on", "cpu"), about.get("batch", 1)
    here = {key: value for key, value in host(on).items() if key != "cores"}
    settings = {"space": plan.space.to_dict(), "checks": {n: a.to_dict() for n, a in plan.checks.items()}}
    settings |= {**here, **runtime(args.runtime).fingerprint(on), "packages": packages()}
    settings |= {"rounds": args.rounds, "seed": args.seed, "table": about, "classes": table.num_classes}
    write = partial(write_candidate, format_for(args.runtime), plan, batch=batch)
    groups = Groups(write, format_for(args.runtime), args.rounds, args.seed, folder, settings)
    parts = {f"pass {i + 1}": plan.check_groups(GROUP) for i in range(args.passes)}
    bench = partial(Bench, args.runtime, about["threads"], on)
    with stage("check") as progress:
        found = groups.measure(parts, bench, lambda done, total, part: progress.update(done, part, total))
    repeats = {name: [] for name in plan.checks}
    for group in found:
        base = undisturbed(group[REFERENCE])
        for name in group.keys() - {REFERENCE}:
            repeats[name].append(undisturbed(group[name]) / base * table.reference.latency)
    return repeats, found


def row(title, figures):
    print(
        f"{title:<24} mean {figures['mean_error']:6.1%} (allowed {figures['mean_allowed']:.1%})   worst "
        f"{figures['worst_error']:6.1%} (allowed {WORST:.0%})   rank correlation {figures['spearman']:.3f} "
        f"(needed {SPEARMAN})   {'passed' if figures['passed'] else 'FAILED'}"
    )


def _from_here(argument):
    """A path inside the repository as it is given there; where the repository lies is nobody's business."""
    root = Path(__file__).parents[1]
    return str(Path(argument).relative_to(root)) if Path(argument).is_relative_to(root) else argument


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="efficientformerv2")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--table", type=Path, help="check this table instead of profiling")
    parser.add_argument("--networks", type=int, default=64, help="that correct the table")
    parser.add_argument("--checks", type=int, default=20, help="random networks in the table's own check, and in this")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--passes", type=int, default=2, help="of the checking run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    work = args.out.with_name(f"{args.out.name}.work")
    path = args.table or work / "table.json"
    start = time.time()
    if not path.exists():
        settings = ProfileSettings(args.threads, 1, args.rounds, args.networks, args.checks, args.device)
        profile_file(args.space, args.runtime, args.classes, settings, args.seed, path)
    seconds = {"profile": time.time() - start}  # of this call: less if it went on with an earlier one
    table, space = LatencyTable.load(path), SearchSpace.named(args.space)
    check_fits(table, path, space, args)
    about = table.fingerprint
    used = Plan.draw(space, table.num_classes, about["networks"], about["checks"], about["seed"])
    random_ones = {n: a for n, a in used.checks.items() if n.startswith("check")}
    avoid = {*used.networks.values(), *random_ones.values()}
    plan = Plan.draw(space, table.num_classes, 0, args.checks, about["seed"] + 1000 + args.seed, avoid)
    start = time.time()
    repeats, groups = measured(plan, table, args, work / "check")
    seconds["check"] = time.time() - start

    check = checked(table, plan, repeats)
    macs = macs_table(table, space, [(plan.checks[n], statistics.fmean(ms)) for n, ms in repeats.items()])
    by_macs = checked(macs, plan, repeats)
    figures = {"table": verdict(check), "macs_times_constant": verdict(by_macs)}
    row(f"table of {args.runtime}", figures["table"])
    row("MACs x constant", figures["macs_times_constant"])
    print(f"two passes of the checking run differ by {check.repeatability:.1%}")
    own = table.check
    write_json(
        args.out,
        {
            "what": "a latency table against whole networks it has not seen, measured again in a run of its own",
            "command": " ".join(["python", "benchmarks/latency_table.py", *map(_from_here, sys.argv[1:])]),
            "table": {"fingerprint": about, "reference_ms": table.reference.latency, "unit_ms": table.unit},
            "own_check": {"mean": own.mean, "worst": own.worst, "repeatability": own.repeatability} if own else None,
            "seconds_of_this_call": seconds,
            **figures,
            "networks": [
                {**n.__dict__, "error": n.error, "macs_error": m.error}
                for n, m in zip(check.networks, by_macs.networks, strict=True)
            ],
            "samples_ms": json.loads(json.dumps(groups)),
        },
    )
    sys.exit(not figures["table"]["passed"] or figures["macs_times_constant"]["passed"])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
