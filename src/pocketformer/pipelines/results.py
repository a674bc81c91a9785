"""`results.json`: everything that came out of a `design` run, as plain data for the page and the last lines."""

from dataclasses import dataclass, replace
from pathlib import Path

from pocketformer import files
from pocketformer.architecture import Selection
from pocketformer.pipelines.chain import Chain
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.searching import Trajectory
from pocketformer.pipelines.shipping import Candidate
from pocketformer.runs import versions
from pocketformer.search import Objective
from pocketformer.search.evaluation import shared_prefix
from pocketformer.training.evaluation import Outcome, paired_difference

_TITLES = {
    "found": "found by the search",
    "largest": "largest subnet",
    "smallest": "smallest subnet trained",
    "random": "best random subnet",
}
SAME_COST = 0.05  # how far latencies as measured, and parameters, of networks "of the same cost" may be apart


@dataclass(frozen=True)
class Compared:
    """A network after the final training: its accuracy on search (before it) and its answers on test."""

    name: str
    selection: Selection
    accuracy_search: float
    latency: float  # of the whole network as measured, ms
    median: float | None  # of all calls, ms
    outcome: Outcome
    test: dict
    metrics: str


def collect(
    chain: Chain,
    goal: Objective,
    shipped: Candidate,
    exported: dict,
    trajectory: Trajectory,
    scored: list[dict],
    networks: list[Compared],
) -> dict:
    settings, data, space = chain.settings, chain.data, chain.settings.space
    budgets = dict(goal.budgets)
    costs = trajectory.costs  # the table's latencies as measuring whole networks corrected them: one unit for all
    latency = exported["latency"]
    final_costs = {**costs(shipped.point.selection), "latency": latency["latency"]}
    usage = goal.usage(final_costs)
    architecture = shipped.architecture
    report = exported["report"]
    # The shipped network was timed twice: as a candidate, and as the file that ships. The file is what counts.
    own = {"latency": latency["latency"], "median": latency.get("median")}
    networks = [replace(n, **own) if n.name == "found" else n for n in networks]
    return {
        "command": settings.command,
        "seed": settings.seed,
        "data": {
            "source": data.source,
            "classes": list(data.classes),
            "images": {"fit": len(data.fit), "search": len(data.search), "test": len(data.test)},
            "fingerprint": data.fingerprint,
            "split_fingerprint": data.split_fingerprint,
            "notes": list(data.notes),
        },
        "space": {"name": space.name, "resolution": list(space.resolution), "description": space.to_dict()},
        "runtime": {
            "name": settings.runtime,
            "threads": settings.profile.threads,
            "batch": settings.profile.batch,
        },
        "budgets": budgets,
        "min_mes": goal.min_mes,
        "binding": max(usage, key=usage.get) if usage else None,
        "shipped": {
            "name": "found",
            "step": shipped.point.step,
            "architecture": architecture.to_dict(),
            "selection": shipped.point.selection.to_dict(),
            "parameters": architecture.parameters(len(data.classes), distilled=False),
            "macs": architecture.macs(num_classes=len(data.classes), distilled=False),
            "peak_memory": architecture.peak_memory(num_classes=len(data.classes)),
            "file": f"exported/{Path(report['path']).name}",
            "file_bytes": report["bytes"],
            "latency": {
                "predicted": costs(shipped.point.selection)["latency"],
                "correction": costs.correction,
                "measured": latency["latency"],
                "median": latency.get("median"),  # None: measured before it was told
                "raw": latency["raw"],
                "spread": latency["spread"],
                "rounds": latency["rounds"],
                "sessions": latency.get("sessions"),  # None: measured before they were told
            },
            "usage": usage,
            "mes": goal.mes(final_costs),
            "export": {"details": report["details"], **(report["verified"] or {})},
            "training": {
                "epochs": settings.final.epochs,
                "init": "scratch" if settings.from_scratch else "supernet",
                "teacher": settings.teacher,
            },
        },
        "comparison": [_row(n, costs, goal) for n in networks],
        "random": _cloud(scored, space, costs, goal),
        "verdict": verdict(networks, costs),
        "search": _search(trajectory),
        "versions": versions(),
        "trainings": {
            "supernet": "supernet/metrics.jsonl",
            **{n.name: n.metrics for n in networks},
        },
    }


def _row(network: Compared, costs: CostModel, goal: Objective) -> dict:
    architecture = network.selection.architecture
    own = costs(network.selection)
    return {
        "name": network.name,
        "title": _TITLES[network.name],
        "parameters": own["size"],
        "macs": architecture.macs(num_classes=costs.num_classes, distilled=False),
        "latency_predicted": own["latency"],
        "latency_measured": network.latency,
        "latency_median": network.median,
        "mes": goal.mes({**own, "latency": network.latency}),
        "peak_memory": own["memory"],
        "accuracy_search": network.accuracy_search,
        "test": network.test if network.name == "found" else _without_classes(network.test),
    }


def _without_classes(test: dict) -> dict:
    """Of the networks that are only compared, no figures of classes: they would be most of the file."""
    return {name: value for name, value in test.items() if name not in ("per_class", "confusion")}


def _cloud(scored: list[dict], space, costs: CostModel, goal: Objective) -> list[dict]:
    cloud = []
    rest = scored[1:]
    best = max(rest, key=lambda line: (line["accuracy"], -line["loss"]), default=None)
    for line in rest:
        own = costs(Selection.from_dict(space, line["selection"]))
        cloud.append(
            {
                "accuracy": line["accuracy"],
                "parameters": own["size"],
                "latency": own["latency"],
                "mes": goal.mes(own),
                "chosen": line is best,
            }
        )
    return cloud


def _told_costs(found: Compared, other: Compared, costs: CostModel) -> str:
    """How the costs of two networks compare, as measured."""
    sizes = [costs(network.selection)["size"] for network in (found, other)]
    if max(abs(found.latency / other.latency - 1), abs(sizes[0] / sizes[1] - 1)) <= SAME_COST:
        return "of the same cost"
    own, others = (
        f"{network.latency:.3g} ms and {size:,.0f} parameters"
        for network, size in zip((found, other), sizes, strict=True)
    )
    return f"of another cost, {others} against {own}"


def verdict(networks: list[Compared], costs: CostModel) -> dict:
    """Found against the best random one on the same test images: difference, 95 % half width, and a sentence."""
    by_name = {n.name: n for n in networks}
    if by_name["found"].selection == by_name["largest"].selection:
        text = "The largest subnet already holds all budgets: there was nothing to search."
        return {"difference": None, "half_width": None, "text": text}
    if "random" not in by_name:
        return {"difference": None, "half_width": None, "text": "There was no random subnet to compare with."}
    mean, half = paired_difference(by_name["found"].outcome, by_name["random"].outcome)
    figures = (
        f"{100 * mean:+.1f} points on test, 95 % interval {100 * (mean - half):+.1f} to {100 * (mean + half):+.1f}"
    )
    other = f"the best random subnet, {_told_costs(by_name['found'], by_name['random'], costs)}"
    if mean > half:
        text = f"The search wins over {other} ({figures})."
    elif mean > 0:
        text = f"The search is ahead of {other}, but by no more than these test images can tell ({figures})."
    else:
        text = f"The search did not win over {other} ({figures})."
    return {"difference": mean, "half_width": half, "text": text}


def _search(trajectory: Trajectory) -> dict:
    """How long the search was, and its block executions per batch beside those of evaluating each subnet whole."""
    lines = files.Lines.read(trajectory.path)
    space = trajectory.start.space
    current, shared, naive = trajectory.start, 0, 0
    begun: set[int] = set()
    for line in lines:
        if line["type"] == "evaluated":
            if line["step"] not in begun:
                begun.add(line["step"])
                shared += len(current.steps)
                naive += len(current.steps)
            candidate = Selection.from_dict(space, line["selection"])
            naive += len(candidate.steps)
            shared += len(candidate.steps) - shared_prefix(current, candidate)
        elif line["type"] == "executed":
            current = Selection.from_dict(space, line["selection"])
    statuses = [line["status"] for line in lines if line["type"] == "end"]
    return {
        "status": statuses[0] if statuses else "unfinished",
        "steps": sum(line["type"] == "executed" for line in lines),
        "evaluations": sum(line["type"] == "evaluated" for line in lines),
        "block_executions": shared,
        "naive_block_executions": naive,
    }
