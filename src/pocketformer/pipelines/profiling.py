"""The device's side of the chain: the latency table of a space, and whole networks timed beside it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from pocketformer import files
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.deploy import SUFFIXES, format_for
from pocketformer.deploy.verify import verify
from pocketformer.devices import LatencyTable
from pocketformer.devices.candidates import untrained, write_network
from pocketformer.devices.emit import check_format, emit
from pocketformer.devices.manifest import Manifest, digest
from pocketformer.devices.plan import Plan
from pocketformer.devices.profile import JOURNAL, check_settings, profile, write_reference
from pocketformer.devices.results import import_table
from pocketformer.devices.whole import WholeMeasurement, measure_whole
from pocketformer.errors import UserError, WorkError
from pocketformer.models import Network
from pocketformer.pipelines.early import verify_export
from pocketformer.pipelines.settings import ProfileSettings
from pocketformer.pipelines.tables import told, warn
from pocketformer.progress import Stage, stage
from pocketformer.runs import Ledger, alone
from pocketformer.runtimes.sessions import Sessions

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
    with stage(f"profile {runtime_name}", done=max(len(journal) - 1, 0)) as progress:

        def report(done: int, total: int, what: str) -> None:
            nonlocal journal
            finished = done != progress.done
            progress.update(done, what, total)
            if ledger and finished:
                # Groups that an earlier process measured are reported too; only work of this one changes the journal.
                before, journal = journal, files.Lines.read(work / JOURNAL)
                if journal != before:
                    ledger.did("profile", done)

        table = profile(
            space,
            runtime_name,
            num_classes,
            threads=settings.threads,
            device=settings.device,
            batch=settings.batch,
            rounds=settings.rounds,
            networks=settings.networks,
            checks=settings.checks,
            seed=seed,
            work=work,
            progress=report,
        )
        progress.update(progress.done, told(table, space))
    return table


def profile_file(
    space_name: str, runtime_name: str, num_classes: int, settings: ProfileSettings, seed: int, out: Path
) -> LatencyTable:
    """`profile` on its own: measures a table and writes it to `out`; an interrupted one goes on from a hidden
    folder beside it."""
    _check_file(out)
    space = SearchSpace.named(space_name)
    work = out.with_name(f".{out.name}.work")
    with alone(work):
        try:
            if not files.Lines.read(work / JOURNAL):
                verify_export(space, format_of_runtime(runtime_name), num_classes)
            table = profile_space(space, runtime_name, num_classes, settings, seed, work)
        except (UserError, WorkError):
            if len(files.Lines.read(work / JOURNAL)) <= 1:  # nothing was measured
                shutil.rmtree(work, ignore_errors=True)
            raise
        table.save(out)
        shutil.rmtree(work, ignore_errors=True)
    warn(table, str(out), space)
    return table


def format_of_runtime(runtime_name: str) -> str:
    """The name of the format that a runtime runs."""
    return format_for(runtime_name).NAME


def emit_models(
    space_name: str,
    format_name: str,
    num_classes: int,
    settings: ProfileSettings,
    seed: int,
    folder: Path,
    precision: str = "float32",
) -> Manifest:
    """`profile --emit-models`: what a profile would time, as files for another device."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--emit-models {folder} is a file; give a folder")
    check_format(format_name, precision)
    check_settings(1, settings.batch, num_classes, settings.rounds, settings.networks, settings.checks)
    space = SearchSpace.named(space_name)
    plan = Plan.draw(space, num_classes, settings.networks, settings.checks, seed)
    if not (folder / "models").exists():
        verify_export(space, format_name, num_classes, precision=precision)
    with stage(f"write {format_name} models", len(plan.roles)) as progress:

        def report(done: int, total: int, name: str) -> None:
            progress.update(done, name, total)

        options = {"precision": precision, "batch": settings.batch, "seed": seed}
        return emit(plan, format_name, folder, **options, progress=report)


def import_file(source: Path, manifest: Path | None, out: Path) -> LatencyTable:
    """`profile --import`: the table of times measured elsewhere, written to `out`."""
    _check_file(out)
    table, space = import_table(source, manifest)
    table.save(out)
    warn(table, str(out), space)
    return table


def _check_file(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give the path of the table's file")


def time_networks(
    networks: Mapping[str, Architecture | Path],
    space: SearchSpace,
    table: LatencyTable,
    runtime_name: str,
    settings: ProfileSettings,
    progress: Stage | None = None,
    work: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Times whole networks, given as exported files or as architectures (whose weights do not matter), beside
    the table's reference network. What the architectures' files compute is compared with PyTorch's first.

    {name: {"latency": ms with the device's drift since the table taken out, "median": that of all calls, likewise,
    "raw": ms as the clock showed, "spread": ms, "rounds", "sessions"}}; of the sessions the middle one's, and how many
    there were.

    In the folder `work` the files and the sessions are kept until all is done: what an interrupted call has left there,
    of the same networks, is not done again.
    """
    format = format_for(runtime_name)
    with tempfile.TemporaryDirectory(prefix="pocketformer-") as temporary:
        folder = work or Path(temporary)
        suffix = SUFFIXES[format.NAME]
        reference = folder / f"reference{suffix}"
        if not reference.exists():
            with files.whole(reference, format.COMPANION) as path:
                write_reference(space, runtime_name, table.num_classes, path, settings.batch)
        paths, written = {}, {}
        for name, network in networks.items():
            if isinstance(network, Architecture):
                paths[name] = folder / f"{_digest(network)}{suffix}"
                written[name] = _written(format, network, table, paths[name], settings.batch)
            else:
                paths[name] = network
            if progress:
                progress.advance()

        def check(sessions: Sessions) -> None:
            images = torch.randn(settings.batch, 3, *table.resolution, generator=torch.Generator().manual_seed(0))
            for name, model in written.items():
                verify(model, lambda x, name=name: sessions.run(name, x, (settings.batch,)), images)

        of = sorted(path.name for path in paths.values())
        with files.Lines(folder / "sessions.jsonl") as journal:
            done = [line["times"] for line in journal.read(journal.path) if line["of"] == of]
            # The same file takes 1 to 2 % more or less from one session to the next: the median of several counts.
            for seed in range(len(done), _SESSIONS):
                how = {"rounds": _WHOLE_ROUNDS, "seed": seed, "check": None if seed else check}
                found = measure_whole(paths, table, reference, runtime_name, **how)
                done.append({paths[name].name: _told(measured) for name, measured in found.items()})
                journal.write({"of": of, "times": done[-1]})
    found = {name: _middle([times[path.name] for times in done]) for name, path in paths.items()}
    if work is not None:
        files.remove(work)
    return found


def _written(format: ModuleType, architecture: Architecture, table: LatencyTable, path: Path, batch: int) -> Network:
    """The network whose file lies at `path`: written now, or the same again, whose weights its own seed makes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(_digest(architecture), 16) % 2**31)
        if path.exists():
            return untrained(architecture, table.num_classes, table.resolution)
        with files.whole(path, format.COMPANION) as temporary:
            return write_network(format, architecture, table.num_classes, table.resolution, temporary, batch)


def _digest(architecture: Architecture) -> str:
    return digest(architecture.to_dict())[:16]


def _told(measured: WholeMeasurement) -> dict[str, float]:
    times = {"latency": measured.latency, "median": measured.median}
    return {**times, "raw": measured.raw.median, "spread": measured.spread}


def _middle(found: list[dict[str, float]]) -> dict[str, float]:
    middle = sorted(found, key=lambda times: times["latency"])[len(found) // 2]
    return {**middle, "rounds": _WHOLE_ROUNDS, "sessions": len(found)}
