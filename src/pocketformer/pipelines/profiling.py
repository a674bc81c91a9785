"""The device's side of the chain: the latency table of a space, and whole networks timed beside it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.deploy import SUFFIXES, format_for
from pocketformer.devices import LatencyTable
from pocketformer.devices.candidates import write_network
from pocketformer.devices.profile import JOURNAL, profile, write_reference
from pocketformer.devices.whole import WholeMeasurement, measure_whole
from pocketformer.errors import UserError
from pocketformer.pipelines.settings import ProfileSettings
from pocketformer.progress import Stage, stage
from pocketformer.runs import Ledger

_SESSIONS, _WHOLE_ROUNDS = 5, 30


def profile_space(
    space: SearchSpace,
    runtime_name: str,
    num_classes: int,
    settings: ProfileSettings,
    seed: int,
    work: Path,
    ledger: Ledger | None = None,
) -> LatencyTable:
    """Measures the table of a space, or goes on with a measurement that was cut short in `work`."""
    journal = files.Lines.read(work / JOURNAL)
    with stage(f"profile {runtime_name}") as progress:

        def report(done: int, total: int, what: str) -> None:
            nonlocal journal
            progress.update(done, what, total)
            # Groups that an earlier process measured are reported too; only work of this one changes the journal.
            before, journal = journal, files.Lines.read(work / JOURNAL)
            if ledger and journal != before:
                ledger.did("profile", done)

        table = profile(
            space,
            runtime_name,
            num_classes,
            threads=settings.threads,
            batch=settings.batch,
            rounds=settings.rounds,
            networks=settings.networks,
            checks=settings.checks,
            seed=seed,
            work=work,
            progress=report,
        )
        if table.check is not None:
            mean, worst = table.check.mean, table.check.worst
            count = len(table.check.networks)
            progress.update(progress.done, f"error on {count} unseen networks: mean {mean:.1%}, worst {worst:.1%}")
    return table


def profile_file(
    space_name: str, runtime_name: str, num_classes: int, settings: ProfileSettings, seed: int, out: Path
) -> LatencyTable:
    """`profile` on its own: measures a table and writes it to `out`; an interrupted one goes on from a hidden
    folder beside it."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the table's file")
    space = SearchSpace.named(space_name)
    work = out.with_name(f".{out.name}.work")
    table = profile_space(space, runtime_name, num_classes, settings, seed, work)
    table.save(out)
    shutil.rmtree(work, ignore_errors=True)
    return table


def time_networks(
    networks: Mapping[str, Architecture | Path],
    space: SearchSpace,
    table: LatencyTable,
    runtime_name: str,
    settings: ProfileSettings,
    progress: Stage | None = None,
) -> dict[str, dict[str, float]]:
    """Times whole networks, given as exported files or as architectures (whose weights do not matter), beside
    the table's reference network.

    {name: {"latency": ms with the device's drift since the table taken out, "raw": ms as the clock showed,
    "spread": ms, "rounds"}}.
    """
    format = format_for(runtime_name)
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as folder:
        reference = Path(folder) / f"reference{SUFFIXES[format.NAME]}"
        write_reference(space, runtime_name, table.num_classes, reference, settings.batch)
        paths = {}
        for i, (name, network) in enumerate(networks.items()):
            if isinstance(network, Architecture):
                paths[name] = Path(folder) / f"{i}{SUFFIXES[format.NAME]}"
                write_network(format, network, table.num_classes, table.resolution, paths[name], settings.batch)
            else:
                paths[name] = network
            if progress:
                progress.advance()
        # The same file takes 1 to 2 % more or less from one session to the next: the median of several counts.
        found = [
            measure_whole(paths, table, reference, runtime_name, rounds=_WHOLE_ROUNDS, seed=seed)
            for seed in range(_SESSIONS)
        ]
    return {name: _middle([measured[name] for measured in found]) for name in paths}


def _middle(found: list[WholeMeasurement]) -> dict[str, float]:
    middle = sorted(found, key=lambda m: m.latency)[len(found) // 2]
    rounds = _WHOLE_ROUNDS * len(found)
    return {"latency": middle.latency, "raw": middle.raw.median, "spread": middle.spread, "rounds": rounds}
