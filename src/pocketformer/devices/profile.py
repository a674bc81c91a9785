"""`profile`: measures the latency table of a space on this device (contract 6.10).

Blocks are timed in chains on the fused graph, the values then corrected by whole random networks, and the
table is checked on further networks, in two passes whose difference is the repeatability. Everything is timed
in groups beside a reference network, whose drift is taken out; an interrupted profile goes on.
"""

import datetime
import os
from functools import partial
from pathlib import Path

from pocketformer.architecture import SearchSpace
from pocketformer.deploy import format_for
from pocketformer.devices.bench import Bench
from pocketformer.devices.candidates import write_candidate, write_network
from pocketformer.devices.groups import JOURNAL, METHOD, Groups, Progress
from pocketformer.devices.host import host, packages
from pocketformer.devices.plan import Plan
from pocketformer.devices.table import LatencyTable
from pocketformer.devices.tabulate import tabulate
from pocketformer.errors import UserError
from pocketformer.runtimes import check_device, runtime

__all__ = ["JOURNAL", "check_settings", "profile", "write_reference"]

_GROUP = 12
_CHECK_PASSES = 2


def profile(
    space: SearchSpace,
    runtime_name: str,
    num_classes: int,
    *,
    threads: int = 1,
    device: str | None = None,
    batch: int = 1,
    rounds: int = 30,
    networks: int = 64,
    checks: int = 20,
    seed: int = 0,
    work: str | os.PathLike,
    progress: Progress | None = None,
) -> LatencyTable:
    """The latency table of `space` for `num_classes` on this device, by the runtime of that name.

    Times are ms per batch of `batch` images; `rounds` samples of each candidate, fewer where networks are slow;
    `networks` random members correct the table (0: chains alone), `checks` others and the space's published
    members test it (0: no check). `work` is a folder for the journal and for model files while they are needed;
    another call with the same settings measures only what the journal lacks. `progress(done, total, part)` is
    called after each group. Raises `UserError` for an unknown runtime or unusable settings.
    """
    check_settings(threads, batch, num_classes, rounds, networks, checks)
    device = check_device(runtime(runtime_name), device)
    format = format_for(runtime_name)
    plan = Plan.draw(space, num_classes, networks, checks, seed)
    settings = {
        "method": METHOD,
        "space": space.to_dict(),
        "num_classes": num_classes,
        "threads": threads,
        "batch": batch,
        "rounds": rounds,
        "networks": networks,
        "checks": checks,
        "seed": seed,
        **host(device),
        **runtime(runtime_name).fingerprint(device),
        "on": device,
        "packages": packages(),
    }
    parts = {"fit": plan.fit_groups(_GROUP)}
    if plan.checks:
        parts |= {f"check, pass {i + 1}": plan.check_groups(_GROUP) for i in range(_CHECK_PASSES)}
    write = partial(write_candidate, format, plan, batch=batch)
    # How many cores this process may use may differ after an interruption.
    compared = {key: value for key, value in settings.items() if key != "cores"}
    groups = Groups(write, format, rounds, seed, Path(work), compared)
    measured = groups.measure(parts, partial(Bench, runtime_name, threads, device), progress)
    fingerprint = {key: value for key, value in settings.items() if key not in ("space", "num_classes")}
    fingerprint["date"] = datetime.date.today().isoformat()
    return tabulate(plan, measured, fingerprint)


def check_settings(threads: int, batch: int, num_classes: int, rounds: int, networks: int, checks: int) -> None:
    """Raises `UserError` for settings that nothing can be measured with."""
    if min(threads, batch, num_classes) < 1 or rounds < 2 or min(networks, checks) < 0:
        raise UserError("threads, batch and classes must be at least 1, rounds 2, networks and checks 0")


def write_reference(space: SearchSpace, runtime_name: str, num_classes: int, path: Path, batch: int = 1) -> None:
    """Writes the reference network of a table of `space`, for timing other files beside it."""
    write_network(format_for(runtime_name), space.largest, num_classes, space.resolution, path, batch)
