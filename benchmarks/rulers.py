"""Do two runtimes on one device want different networks? Two tables rank two architectures in opposite orders.

    python benchmarks/rulers.py TABLE_A TABLE_B --out rulers.json

The committed result: --out benchmarks/results/rulers.json, with the tables of two runtimes of efficientformerv2.

Of many random members of the space, the pair is taken that the tables disagree on most: by table A the first is
faster by as large a factor as the second is by table B. Then both networks are timed whole on both runtimes, in
turn, in several sessions with random places, and the measured ratios are put beside the predicted ones. Exit code
1 if either runtime's measurement does not confirm its table with 95 % confidence.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from paired import paired_sessions, ratio
from pocketformer import Architecture, SearchSpace
from pocketformer.deploy import SUFFIXES, format_for
from pocketformer.devices import LatencyTable
from pocketformer.devices.candidates import write_network
from pocketformer.errors import UserError
from pocketformer.files import write_json
from pocketformer.pipelines.tables import open_table

SESSIONS, ROUNDS = 8, 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs=2, type=open_table, metavar="TABLE")
    parser.add_argument("--space", help="by default that of the tables")
    parser.add_argument("--members", type=int, default=3000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        space = shared_space(args.tables, args.space)
    except UserError as error:
        parser.error(str(error))
    pair = most_disputed([space.sample(seed) for seed in range(args.members)], *args.tables)
    rows, confirmed = {}, True
    for table, wanted in zip(args.tables, (-1, 1), strict=True):
        name = table.fingerprint["runtime"]
        predicted = table.latency(pair[0]) / table.latency(pair[1])
        middle, low, high = measured(pair, name, table)
        holds = (high < 1) if wanted < 0 else (low > 1)
        confirmed &= holds
        rows[name] = {
            "first_over_second_predicted": predicted,
            "first_over_second_measured": middle,
            "interval95": [low, high],
            "confirmed": holds,
            "ms_predicted": [table.latency(a) for a in pair],
        }
        print(name, json.dumps(rows[name]), flush=True)
    about = {key: args.tables[0].fingerprint[key] for key in ("device", "os", "threads", "packages")}
    networks = [{"parameters": a.parameters(), "macs": a.macs(), "architecture": a.to_dict()} for a in pair]
    write_json(args.out, {"what": __doc__.splitlines()[0], **about, "runtimes": rows, "networks": networks})
    return 0 if confirmed else 1


def shared_space(tables: list[LatencyTable], name: str | None) -> SearchSpace:
    """The space of both tables. Raises `UserError` if they are not of one space, or not of the one named."""
    if len({(table.space, tuple(table.resolution)) for table in tables}) > 1:
        raise UserError(f"the tables are of different spaces: {tables[0].space} and {tables[1].space}")
    space = SearchSpace.named(name or tables[0].space)
    if (space.name, tuple(space.resolution)) != (tables[0].space, tuple(tables[0].resolution)):
        raise UserError(
            f"the tables are of {tables[0].space}, not of {space.name}: give --space FILE if it is your own"
        )
    return space


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


def measured(pair: tuple[Architecture, Architecture], runtime: str, table: LatencyTable) -> tuple[float, float, float]:
    """First over second, and its 95 % interval."""
    format = format_for(runtime)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}{SUFFIXES[format.NAME]}" for name in ("first", "second")}
        for architecture, path in zip(pair, paths.values(), strict=True):
            write_network(format, architecture, table.num_classes, table.resolution, path)
        sessions = paired_sessions(paths, runtime, table.fingerprint["threads"], SESSIONS, ROUNDS, seed=0)
    return ratio(sessions, "first", "second")


if __name__ == "__main__":
    sys.exit(main())
