"""Do two runtimes on one device want different networks? Two tables rank two architectures in opposite orders.

    python benchmarks/rulers.py TABLE_A TABLE_B      # writes benchmarks/results/rulers.json

Of many random members of the space, the pair is taken that the tables disagree on most: by table A the first is
faster by as large a factor as the second is by table B. Then both networks are timed whole on both runtimes, in
turn, in several sessions with random places, and the measured ratios are put beside the predicted ones. Exit code
1 if either runtime's measurement does not confirm its table with 95 % confidence.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from pathlib import Path

from pocketformer import Architecture, SearchSpace
from pocketformer.deploy import SUFFIXES, format_for
from pocketformer.devices import LatencyTable
from pocketformer.devices.bench import Bench
from pocketformer.devices.candidates import write_network
from pocketformer.devices.measure import paired_ratios
from pocketformer.files import write_json

RESULTS = Path(__file__).parent / "results" / "rulers.json"
SESSIONS, ROUNDS = 8, 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs=2, type=LatencyTable.load, metavar="TABLE")
    parser.add_argument("--space", default="efficientformerv2")
    parser.add_argument("--members", type=int, default=3000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    space = SearchSpace.named(args.space)
    pair = most_disputed([space.sample(seed) for seed in range(args.members)], *args.tables)
    rows, confirmed = {}, True
    for table, wanted in zip(args.tables, (-1, 1), strict=True):
        name = table.fingerprint["runtime"]
        predicted = table.latency(pair[0]) / table.latency(pair[1])
        ratios = measured(pair, name, table)
        low, high = interval(ratios)
        holds = (high < 1) if wanted < 0 else (low > 1)
        confirmed &= holds
        rows[name] = {
            "first_over_second_predicted": predicted,
            "first_over_second_measured": statistics.median(ratios),
            "interval95": [low, high],
            "confirmed": holds,
            "ms_predicted": [table.latency(a) for a in pair],
        }
        print(name, json.dumps(rows[name]), flush=True)
    about = {key: args.tables[0].fingerprint[key] for key in ("device", "os", "threads", "packages")}
    networks = [{"parameters": a.parameters(), "macs": a.macs(), "architecture": a.to_dict()} for a in pair]
    write_json(args.out, {"what": __doc__.splitlines()[0], **about, "runtimes": rows, "networks": networks})
    return 0 if confirmed else 1


def most_disputed(members: list[Architecture], a: LatencyTable, b: LatencyTable) -> tuple[Architecture, Architecture]:
    """The pair (x, y) with the largest min(log of y / x by table a, log of x / y by table b)."""
    logs = [(math.log(a.latency(m)), math.log(b.latency(m)), m) for m in members]
    best, found = 0.0, None
    for xa, xb, x in logs:
        for ya, yb, y in logs:
            if ya - xa > best and xb - yb > best:
                best, found = min(ya - xa, xb - yb), (x, y)
    if found is None:
        raise SystemExit("the two tables rank all of these members alike")
    return found


def measured(pair: tuple[Architecture, Architecture], runtime: str, table: LatencyTable) -> list[float]:
    """First over second, round by round."""
    format, rng, ratios = format_for(runtime), random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}{SUFFIXES[format.NAME]}" for name in ("first", "second")}
        for architecture, path in zip(pair, paths.values(), strict=True):
            write_network(format, architecture, table.num_classes, table.resolution, path)
        for session in range(SESSIONS):
            with Bench(runtime, table.fingerprint["threads"]) as bench:
                for name in list(paths)[:: 1 if session % 2 else -1]:
                    bench.load(name, paths[name])
                found = bench.interleave(list(paths), ROUNDS, seed=rng.randrange(2**30), fastest=True)
            ratios += paired_ratios(found["first"], found["second"])
    return ratios


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the median, by the bootstrap over sessions (rounds of one session share its luck)."""
    rng, sessions = random.Random(0), [ratios[i : i + ROUNDS] for i in range(0, len(ratios), ROUNDS)]
    medians = sorted(
        statistics.median(r for s in rng.choices(sessions, k=len(sessions)) for r in s) for _ in range(draws)
    )
    return medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]


if __name__ == "__main__":
    sys.exit(main())
