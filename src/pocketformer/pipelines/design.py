"""`design`: images, a device and budgets in; a searched, trained, exported, checked and measured network out.

Each stage leaves its result in the run's folder and is not done again; killed anywhere and started again, the
chain ends in the same result.
"""

import shutil
from contextlib import closing
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Architecture, Selection
from pocketformer.deploy import SUFFIXES, export, format_for
from pocketformer.deploy.facts import Facts, companion
from pocketformer.deploy.verify import MAX_IMAGES
from pocketformer.devices import LatencyTable
from pocketformer.errors import UserError, WorkError
from pocketformer.models import Network
from pocketformer.pipelines import early, results
from pocketformer.pipelines.baselines import random_subnets, score_subnets
from pocketformer.pipelines.chain import Chain
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.facts import classifier_facts
from pocketformer.pipelines.images import open_images, record_images, say_uneven
from pocketformer.pipelines.networks import FinalTraining, recalibrated_score, test_result
from pocketformer.pipelines.profiling import profile_space, time_networks
from pocketformer.pipelines.refusals import check_measured_here, check_table, refuse_small_budgets, refuse_unreachable
from pocketformer.pipelines.results import Compared
from pocketformer.pipelines.samples import sample
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.searching import Trajectory
from pocketformer.pipelines.settings import DesignSettings, stored_size
from pocketformer.pipelines.shipping import ROUNDS, Candidate, Measured, search_and_measure
from pocketformer.pipelines.supernets import opened, train_supernet
from pocketformer.pipelines.tables import is_wrong, open_table, refuse_wrong
from pocketformer.progress import say, stage
from pocketformer.runs import Run, check_folder, held, read_config
from pocketformer.runtimes import runtime
from pocketformer.search import Objective
from pocketformer.supernet import Supernet
from pocketformer.training import checkpoint
from pocketformer.training.batches import OURS
from pocketformer.training.class_order import ClassOrder
from pocketformer.training.teachers import load_teacher

_ATTEMPTS = 4  # networks that are timed a second time until one holds the budgets again


def design(settings: DesignSettings, out: str | Path) -> dict:
    """Runs or resumes the whole chain in the folder `out`; returns what is written to `results.json`."""
    runtime(settings.runtime)  # unknown runtimes are refused before anything is written
    if settings.profile.batch != 1:
        raise UserError("design exports a network for one image at a time: batch must be 1")
    latency = LatencyTable.load(settings.latency) if settings.latency else None
    order = ClassOrder.parse(settings.class_order)
    inputs = {"data": None, **held(latency=settings.latency, teacher=settings.teacher)}
    check_folder(out, settings.command, settings.to_dict(), inputs)
    data = open_images(
        settings.data,
        stored_size(settings.space),
        settings.seed,
        settings.bad_images,
        settings.workers,
        group_by=settings.group_by,
    )
    say_uneven(data, settings.final.balance)
    refuse_small_budgets(settings.space, settings.budgets, len(data.classes))
    if latency is not None:
        check_table(latency, settings.latency, settings.space, len(data.classes))
        check_measured_here(latency, settings.latency, settings.runtime, settings.profile)
        if not settings.accept_table_error and not (Path(out) / "results.json").exists():
            refuse_wrong(latency, settings.latency, "profile again while the device is idle")
        _objective(settings, CostModel(latency, len(data.classes)))
    given = settings.teacher, data.classes, settings.space.resolution, order
    teacher = load_teacher(*given) if settings.teacher else None
    with Run(out, settings.command, settings.to_dict(), inputs) as run:
        record_images(run, data)
        chain = Chain(settings, run, data)
        if (run.path / "results.json").exists():
            return files.read_json(run.path / "results.json")

        _verify_export(chain)
        table = _table(chain, latency)
        costs = CostModel(table, len(data.classes))
        try:
            goal = _objective(settings, costs)
        except WorkError as error:
            measured = run.path / "latency_table.json"
            raise WorkError(f"{error} (measured: {measured}, which --latency takes in another --out)") from None
        run.record(largest=costs.largest(settings.space))  # which budgets in percent refer to
        supernet = train_supernet(
            run.path / "supernet",
            settings.space,
            data,
            settings.supernet,
            settings.seed,
            run.ledger,
            about=opened(settings.data, settings.seed, settings.bad_images, settings.group_by),
        )
        measured = _measured(chain, table)
        final = FinalTraining(data, settings.final, settings.seed, run.ledger, teacher)
        shipped, exported, trajectory = _ship(chain, supernet, final, measured, table, costs, goal)
        scored = _random(chain, supernet, costs, goal, shipped)
        networks = _compare(chain, supernet, final, measured, shipped, scored)
        outcome = results.collect(chain, goal, shipped, exported, trajectory, scored, networks)
        files.write_json(run.path / "results.json", outcome)
        return outcome


def _verify_export(chain: Chain) -> None:
    """A runtime that cannot be written for is told in the first minute, not after the last training."""
    settings, format = chain.settings, format_for(chain.settings.runtime).NAME
    if "export_verified" not in read_config(chain.path)["facts"]:
        images, _ = sample(chain.data.search, early.IMAGES, settings.space.resolution, OURS, settings.seed)
        early.verify_export(settings.space, format, len(chain.data.classes), images)
        chain.run.record(export_verified=format)


def _table(chain: Chain, given: LatencyTable | None) -> LatencyTable:
    settings, path = chain.settings, chain.path / "latency_table.json"
    in_use = "largest" in read_config(chain.path)["facts"]  # budgets have been derived from it
    own = settings.latency is None and not in_use
    if own and path.exists() and not settings.accept_table_error and is_wrong(LatencyTable.load(path)):
        files.remove(chain.path / "profile")
        files.remove(path)  # it was refused
    if not path.exists():
        if given is None:
            given = profile_space(
                settings.space,
                settings.runtime,
                len(chain.data.classes),
                settings.profile,
                settings.seed,
                chain.path / "profile",
                chain.run.ledger,
            )
        given.save(path)
    table = open_table(path, settings.space)
    if not settings.accept_table_error:
        repeat = "repeat this command, which measures again, while the device is idle"
        again = repeat if own else "profile again while the device is idle, for another --out"
        refuse_wrong(table, str(path), again)
    return table


def _objective(settings: DesignSettings, costs: CostModel) -> Objective:
    """The budgets in the metrics' units. Raises `WorkError` if no member of the space meets them."""
    space = settings.space
    goal = costs.objective(space, settings.budgets, settings.min_mes, settings.alphas, settings.form)
    refuse_unreachable(space, costs, goal)
    return goal


def _measured(chain: Chain, table: LatencyTable) -> Measured:
    settings = chain.settings

    def timer(architectures: dict[str, Architecture]) -> dict[str, dict[str, float]]:
        with stage("time whole networks", len(architectures)) as progress:
            how = (settings.space, table, settings.runtime, settings.profile, progress)
            return time_networks(architectures, *how, chain.path / "timing")

    return Measured(chain.path / "measured.jsonl", timer, chain.run.ledger)


def _search(
    chain: Chain, supernet: Supernet, measured: Measured, costs: CostModel, goal: Objective, rounds: int
) -> tuple[list[Candidate], Trajectory]:
    settings, path, ledger = chain.settings, chain.path / "search.jsonl", chain.run.ledger
    with (
        stage("search") as progress,
        evaluator(supernet, chain.data, settings.seed, settings.calibration, progress) as evaluate,
        closing(Trajectory(path, settings.space.whole, costs, goal, evaluate, ledger, progress)) as trajectory,
    ):
        candidates = search_and_measure(trajectory, measured, rounds)
    if len(trajectory.points()) == 1:
        say("note: the largest subnet already holds all budgets: there was nothing to search")
    for point in trajectory.points():
        name = f"step_{point.step:03d}.json"
        if not (chain.path / "front" / name).exists():
            point.selection.architecture.save(chain.path / "front" / name)
    return candidates, trajectory


def _random(chain: Chain, supernet: Supernet, costs: CostModel, goal: Objective, found: Candidate) -> list[dict]:
    """Random subnets as costly as the found one, scored on the search split; the found one's line comes first."""
    settings, space = chain.settings, chain.settings.space
    own = costs(found.point.selection)
    others = {name: budget for name, budget in goal.budgets.items() if name not in ("latency", "size")}
    budgets = {"latency": own["latency"], "size": own["size"], **others}
    selections = random_subnets(space, costs, budgets, settings.random, settings.seed, found.point.selection)
    if len(selections) < settings.random:
        say(f"note: only {len(selections)} random subnets of the found one's cost were drawn")
    return score_subnets(
        chain.path / "random.jsonl",
        supernet,
        [found.point.selection, *selections],
        chain.data,
        settings.seed,
        chain.run.ledger,
        "score random subnets",
    )


def _ship(
    chain: Chain,
    supernet: Supernet,
    final: FinalTraining,
    measured: Measured,
    table: LatencyTable,
    costs: CostModel,
    goal: Objective,
) -> tuple[Candidate, dict, Trajectory]:
    """Searches until the best candidate holds the budgets in a second sitting too, then trains it, exports it and times
    the file. What that took is only reported: it says nothing of the network that two sittings did not."""
    candidate, trajectory = _confirmed(chain, supernet, measured, costs, goal)
    folder = chain.path / "networks" / f"found_step{candidate.point.step}"
    name = f"found (step {candidate.point.step})"
    model = _trained(chain, supernet, final, candidate.point.selection, folder, name)
    exported = _exported(chain, model, folder, table)
    took, before = exported["latency"]["latency"], measured.again(candidate.architecture)["latency"]
    if not goal.met({**candidate.costs, "latency": took}):
        say(
            f"warning: the exported file took {took:.3g} ms, over budget; the same network took "
            f"{candidate.costs['latency']:.3g} and {before:.3g} ms in the two sittings before its training"
        )
    for file in ("model.safetensors", "config.json", "architecture.json"):
        with files.whole(chain.path / file) as temporary:
            shutil.copyfile(folder / file, temporary)
    return candidate, exported, trajectory


def _confirmed(
    chain: Chain, supernet: Supernet, measured: Measured, costs: CostModel, goal: Objective
) -> tuple[Candidate, Trajectory]:
    """The best candidate that holds the budgets when it is timed again. With what another one took then the search goes
    on."""
    for attempt in range(1, _ATTEMPTS + 1):
        candidates, trajectory = _search(chain, supernet, measured, costs, goal, attempt * ROUNDS)
        candidate = candidates[0]
        again = measured.again(candidate.architecture)
        if goal.met({**candidate.costs, "latency": again["latency"]}):
            return candidate, trajectory
        say(
            f"step {candidate.point.step} is over budget when timed again ({again['latency']:.3g} ms): "
            "the search goes on"
        )
        measured.replace(candidate.architecture, again)
    raise WorkError(f"{_ATTEMPTS} networks in turn were over budget when timed again: is the device busy?")


def _target(chain: Chain) -> tuple[Path, str | None, str]:
    """The exported file, and the suffixes of the second file that its format has and of its facts."""
    format = format_for(chain.settings.runtime)
    path = chain.path / "exported" / f"model{SUFFIXES[format.NAME]}"
    return path, format.COMPANION, companion(path)


def _exported(chain: Chain, model: Network, folder: Path, table: LatencyTable) -> dict:
    """Exports a trained network to `exported/` and times the file, unless that is done."""
    settings, target = chain.settings, _target(chain)[0]
    file = folder / "export.json"
    done = files.read_json(file) if file.exists() and target.exists() else {}
    if "report" not in done:
        images, _ = sample(chain.data.search, MAX_IMAGES, settings.space.resolution, OURS, settings.seed)
        with stage("export and verify the file"):
            facts = _facts(chain, model, folder)
            report = export(model, target, images, format_for(settings.runtime).NAME, facts=facts)
        files.write_json(file, {"report": report.to_dict()})
    if "latency" not in done:
        with stage("time the file"):
            found = time_networks({"file": target}, settings.space, table, settings.runtime, settings.profile)
        files.write_json(file, {**files.read_json(file), "latency": found["file"]})
    return files.read_json(file)


def _facts(chain: Chain, model: Network, folder: Path) -> Facts:
    data, settings = chain.data, chain.settings
    learned = {"fingerprint": data.fingerprint, "seed": settings.seed, "group_by": settings.group_by}
    return classifier_facts(model, files.read_json(folder / "config.json"), learned)


def _trained(
    chain: Chain, supernet: Supernet, final: FinalTraining, selection: Selection, folder: Path, name: str
) -> Network:
    """The final training of one network, or its result if that is done."""
    if (folder / "model.safetensors").exists():
        return checkpoint.load_model(folder)[0]
    scratch = chain.settings.from_scratch
    model = final.fresh(selection.architecture) if scratch else final.inherit(supernet, selection)
    return final.run(folder, name, model)


def _compare(
    chain: Chain,
    supernet: Supernet,
    final: FinalTraining,
    measured: Measured,
    shipped: Candidate,
    scored: list[dict],
) -> list[Compared]:
    """The found network beside the largest, the smallest and the best random one, all trained alike."""
    space, data, seed = chain.settings.space, chain.data, chain.settings.seed
    found = shipped.point.selection
    chosen = {"found": (found, scored[0]["accuracy"], f"found_step{shipped.point.step}")}
    for name, selection in (("largest", space.whole), ("smallest", space.select(space.smallest))):
        outcome = recalibrated_score(supernet, selection, data, seed)
        chosen[name] = (selection, outcome.accuracy, name)
    if scored[1:]:
        best = max(scored[1:], key=lambda line: (line["accuracy"], -line["loss"]))
        chosen["random"] = (Selection.from_dict(space, best["selection"]), best["accuracy"], "random")
    latencies = measured([selection.architecture for selection, _, _ in chosen.values()])
    compared = []
    for (name, (selection, accuracy, folder)), latency in zip(chosen.items(), latencies, strict=True):
        model = _trained(chain, supernet, final, selection, chain.path / "networks" / folder, name)
        outcome, test = test_result(model, data, 0)
        metrics = f"networks/{folder}/metrics.jsonl"
        compared.append(
            Compared(name, selection, accuracy, latency["latency"], latency.get("median"), outcome, test, metrics)
        )
    return compared
