"""What a search costs (contract 6.12): prefix sharing and the race against evaluating candidate by candidate.

    python benchmarks/search.py executions        # counted, against the closed formula
    python benchmarks/search.py race RUN... --latency TABLE   # trained supernets: what the race saves and decides
    python benchmarks/search.py growth            # one frontier in spaces of one, two and three times the blocks
    python benchmarks/search.py suffixes          # would common suffixes pay, run as one batch?
    python benchmarks/search.py paper             # one frontier of the paper's 224 px space

Each writes its part of benchmarks/results/search.json. Block executions are counted an image at a time, images that
calibrate the norms included. Ways that are compared take turns within one process; a ratio is that of the best times.
`race` alone needs weights that mean something: RUN is a folder of `supernet` or `design`, TABLE its latency table.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from pocketformer import SearchSpace, Selection, Supernet
from pocketformer.architecture import Step
from pocketformer.devices.host import host, packages
from pocketformer.files import read_json, write_json
from pocketformer.pipelines.costs import CostModel
from pocketformer.pipelines.scoring import evaluator
from pocketformer.pipelines.settings import stored_size
from pocketformer.pipelines.supernets import images_of, load_supernet
from pocketformer.pipelines.tables import open_table
from pocketformer.search import Move, Objective, Score, frontier, joint_search
from pocketformer.search.evaluation import NaiveEvaluator, PrefixEvaluator, block_executions
from pocketformer.search.joint import by_price
from pocketformer.search.race import RacingEvaluator

RESULTS = Path(__file__).parent / "results" / "search.json"
Costs = Callable[[Selection], dict[str, float]]


# --- networks, images and costs without meaning: counts and times do not depend on them


def perturbed(space: SearchSpace, seed: int) -> Supernet:
    """Away from initialisation, where layer scales of 1e-5 would make all subnets alike."""
    supernet, generator = Supernet(space, 10, distilled=False), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in supernet.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.7 + 0.2 * noise if name.endswith("gamma") else p + 0.1 * p.std(correction=0) * noise)
    return supernet.eval().to(memory_format=torch.channels_last)


def noise(space: SearchSpace, images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, *space.resolution, generator=generator).contiguous(memory_format=torch.channels_last)


def made_up_costs(selection: Selection) -> dict[str, float]:
    """Real parameters and an additive latency: a fixed part for each block and one for each multiply-add."""
    blocks = selection.architecture.blocks()
    return {"size": selection.architecture.parameters(), "latency": sum(0.005 + b.macs() / 1e9 for b in blocks)}


def neighbours(state: Selection) -> list[Selection]:
    return [selection for _, selection in frontier(state)]


def shared_executions(state: Selection) -> int:
    return block_executions(state, neighbours(state))


def naive_executions(state: Selection) -> int:
    return sum(len(s.steps) for s in (state, *neighbours(state)))


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best time of each; they take turns, each round in another order."""
    best, rng = dict.fromkeys(ways, float("inf")), random.Random(0)
    for _ in range(rounds):
        for name in rng.sample(list(ways), len(ways)):
            began = time.perf_counter()
            ways[name]()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


# --- parts


def executions(args: argparse.Namespace) -> dict:
    """Whole searches with weights and accuracies that mean nothing: shared and naive take the same decisions, and the
    counts are those of the formula. On the paper's space, by the formula alone."""
    space, rows = SearchSpace.named("pocket32"), []
    supernet, images, calibration = perturbed(space, 0), noise(space, 6), 2
    batches = [(images, torch.arange(len(images) - calibration))]
    with supernet.calibrated(calibration):
        ways = [kind(supernet.run, lambda: batches, calibration) for kind in (PrefixEvaluator, NaiveEvaluator)]
        for share in args.budgets:
            counts, found = [], []
            for way in ways:
                before = way.executed
                found.append(list(searched(space, way, share)))
                counts.append(way.executed - before)
            states = [move.state.selection for move in found[0]]
            formula = [sum(map(count, states)) for count in (shared_executions, naive_executions)]
            if counts != formula or found[0] != found[1]:
                raise SystemExit(f"counted {counts}, by the formula {formula}; decisions equal: {found[0] == found[1]}")
            rows.append({"counted": True, **row(space, share, states)})
    paper = SearchSpace.named("efficientformerv2")
    for share in args.budgets:
        states = [move.state.selection for move in searched(paper, worth, share)]
        rows.append({"counted": False, **row(paper, share, states)})
    return {"counts_equal_formula": True, "decisions_equal": True, "searches": rows}


def searched(space: SearchSpace, evaluate: Callable, share: float) -> Iterator[Move]:
    goal = Objective({"latency": share * made_up_costs(space.whole)["latency"]})
    return joint_search(space.whole, made_up_costs, evaluate, goal)


def worth(current: Selection, candidates: Sequence[Selection]) -> list[Score]:
    """An accuracy that falls with every action by a random amount."""

    def accuracy(step: Step) -> float:
        return step.width * (step.expansion or 2) * random.Random(f"{step.kind}{step.stage}/{step.slot}").random()

    found = [sum(map(accuracy, s.steps)) / 1e6 for s in (current, *candidates)]
    return [Score(value, 1 - value) for value in found]


def row(space: SearchSpace, share: float, states: list[Selection]) -> dict:
    shared, naive = (sum(map(count, states)) for count in (shared_executions, naive_executions))
    actions = sum(len(frontier(state)) for state in states)
    about = {"space": space.name, "latency_budget": share, "steps": len(states), "actions": actions}
    return about | {"shared": shared, "naive": naive, "ratio": round(shared / naive, 4)}


def race(args: argparse.Namespace) -> dict:
    """Whole searches on trained supernets, decided by full evaluation; the race is asked at each state."""
    runs = [one_race(args, run) for run in args.runs]
    shared, raced, naive = (sum(run[name] for run in runs) for name in ("shared", "race", "naive"))
    states = [sum(run[name] for run in runs) for name in ("same_action", "states")]
    found = {"to_naive": round(raced / naive, 4), "to_shared": round(raced / shared, 4)}
    steps = [step["seconds"] for run in runs for step in run["steps_timed"]]
    took = {way: sum(step[way] for step in steps) for way in steps[0]}
    found["seconds_to_naive"] = {way: round(took[way] / took["naive"], 4) for way in ("race", "shared")}
    return found | {"shared_to_naive": round(shared / naive, 4), "same_action": states, "searches": runs}


def one_race(args: argparse.Namespace, run: Path) -> dict:
    supernet, config = load_supernet(run)
    space, table = supernet.space, open_table(args.latency)
    costs = CostModel(table, config["num_classes"])
    largest = costs.largest(space)
    budgets = {name: args.budget * largest[name] for name in ("latency", "size")}
    goal = Objective(budgets, units={"size": 3e6, "latency": table.unit})
    data = images_of(run, config, stored_size(space), 2)
    with evaluator(supernet, data, config["seed"], args.calibration, race=True) as evaluate:
        naive = NaiveEvaluator(supernet.run, evaluate.images, evaluate.unscored)
        moves = list(joint_search(space.whole, costs, evaluate.__call__, goal))  # in full
        counts = {"race": 0, "shared": evaluate.executed_images, "naive": 0}
        asked = [same_action(evaluate, move) for move in moves]
        counts["race"] = evaluate.executed_images - counts["shared"]
        counts["naive"] = evaluate.images.work * sum(naive_executions(move.state.selection) for move in moves)
        steps = [frontier_step(evaluate, naive, move, args.rounds) for move in moves[:: args.every]]
    return {
        "supernet": run.name,
        "data": config["data"],
        "seed": config["seed"],
        "images": len(data.search),
        "accuracy": [round(move.state.score.accuracy, 4) for move in (moves[0], moves[-1])],
        "states": len(moves),
        "same_action": sum(asked),
        "cost_no_accuracy": sum(move.chosen.delta_accuracy >= 0 for move in moves),
        **counts,
        "to_naive": round(counts["race"] / counts["naive"], 4),
        "steps_timed": steps,
    }


def same_action(evaluate: RacingEvaluator, move: Move) -> bool:
    """Asks the race for what full evaluation has decided; the action's score must be the same as well."""
    rank = by_price([e.delta_mes for e in move.evaluated])
    own, *scores = evaluate.race(move.state.selection, [e.selection for e in move.evaluated], rank)
    keys = {i: key for i, score in enumerate(scores) if (key := rank(i, own, score)) is not None}
    winner = min(keys, key=keys.get)
    return move.evaluated[winner] is move.chosen and scores[winner].accuracy == move.chosen.score.accuracy


def frontier_step(evaluate: RacingEvaluator, naive: NaiveEvaluator, move: Move, rounds: int) -> dict:
    here, candidates = move.state.selection, [e.selection for e in move.evaluated]
    rank = by_price([e.delta_mes for e in move.evaluated])
    ways = {
        "race": partial(evaluate.race, here, candidates, rank),
        "shared": partial(evaluate, here, candidates),
        "naive": partial(naive, here, candidates),
    }
    took = seconds(ways, rounds)
    ratios = {name: round(took[name] / took["naive"], 3) for name in ("race", "shared")}
    found = {name: round(value, 2) for name, value in took.items()}
    return {"step": move.step, "actions": len(candidates), "seconds": found, "to_naive": ratios}


def growth(args: argparse.Namespace) -> dict:
    """One frontier from the largest subnet, with the stages of pocket28 as deep, twice and three times as deep."""
    rows = [one_size(times, args.rounds) for times in (1, 2, 3)]
    more = [b["actions"] - a["actions"] for a, b in pairwise(rows)]
    return {"actions_grow_linearly": len(set(more)) == 1, "images": 64, "sizes": rows}


def one_size(times: int, rounds: int) -> dict:
    values = {k: v for k, v in SearchSpace.named("pocket28").to_dict().items() if k != "smallest"}
    values["stages"] = [{**stage, "depth": times * stage["depth"]} for stage in values["stages"]]
    space, calibration = SearchSpace.from_dict({**values, "name": f"pocket28, {times} times as deep"}), 16
    supernet, batches = perturbed(space, 0), [(noise(space, 64 + calibration), torch.arange(64) % 10)]
    shared, naive = (kind(supernet.run, lambda: batches, calibration) for kind in (PrefixEvaluator, NaiveEvaluator))
    here, candidates = space.whole, neighbours(space.whole)
    with supernet.calibrated(calibration):
        took = seconds({"shared": partial(shared, here, candidates), "naive": partial(naive, here, candidates)}, rounds)
    return {
        "blocks": sum(step.slot >= 0 for step in here.steps),
        "actions": len(candidates),
        "shared": shared_executions(here),
        "naive": naive_executions(here),
        "seconds": {name: round(value, 3) for name, value in took.items()},
    }


def suffixes(args: argparse.Namespace) -> dict:
    """The steps behind the stem, each on `together` times as many images at once against one after another. Norms use
    their running statistics: calibrated ones would have to be taken from each part, which is work besides."""
    sizes = [("pocket28", n) for n in (64, 256, 1024)] + [("efficientformerv2", 4)]
    return {"together": args.together, "sizes": [one_suffix(*size, args.together, args.rounds) for size in sizes]}


@torch.inference_mode()
def one_suffix(name: str, images: int, together: int, rounds: int) -> dict:
    space = SearchSpace.named(name)
    supernet, x, took = perturbed(space, 0), noise(space, images), {"together": 0.0, "apart": 0.0}

    def apart(step: Step, x: torch.Tensor) -> None:
        for _ in range(together):
            supernet.run(step, x)

    for step in space.whole.steps:
        if step.kind != "stem":
            ways = {
                "together": partial(supernet.run, step, torch.cat([x] * together)),
                "apart": partial(apart, step, x),
            }
            for way, value in seconds(ways, rounds).items():
                took[way] += value
        x = supernet.run(step, x)
    ratio = round(took["together"] / took["apart"], 3)
    return {"space": name, "images": images, "ratio": ratio, "seconds": {k: round(v, 3) for k, v in took.items()}}


def paper(args: argparse.Namespace) -> dict:
    """One frontier of the full 224 px space, all actions, in full; the processor's time for 10,000 images by
    proportion."""
    space = SearchSpace.named("efficientformerv2")
    supernet, here = perturbed(space, 0), space.whole
    batches = [(noise(space, args.images), torch.arange(args.images) % 10)]
    evaluate = PrefixEvaluator(supernet.run, lambda: batches)
    supernet(batches[0][0][:1], here)
    began = time.process_time()
    evaluate(here, neighbours(here))
    took = time.process_time() - began
    return {
        "actions": len(neighbours(here)),
        "shared": shared_executions(here),
        "naive": naive_executions(here),
        "images": args.images,
        "processor_seconds": round(took, 1),
        "projected_hours_for_10000_images": round(took / args.images * 10_000 / 3600, 1),
        "paper": "about 4 GPU-minutes (Sec. 4.2.3; which GPU and how many images is not said)",
    }


PARTS = {part.__name__: part for part in (executions, race, growth, suffixes, paper)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="part", required=True)
    for name, part in PARTS.items():
        command = commands.add_parser(name, help=part.__doc__)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--rounds", type=int, default=3, help="times that each way is timed")
        command.add_argument("--out", type=Path, default=RESULTS)
        if name == "race":
            command.add_argument("runs", type=Path, nargs="+", metavar="RUN")
            command.add_argument("--latency", type=Path, required=True, metavar="TABLE")
            command.add_argument("--budget", type=float, default=0.5, help="share of the largest's latency and size")
            command.add_argument("--calibration", type=int, default=128)
            command.add_argument("--every", type=int, default=2, metavar="N", help="time the first of every N states")
        if name == "executions":
            command.add_argument("--budgets", type=float, nargs="+", default=(0.5, 0.3), help="shares of latency")
        if name == "suffixes":
            command.add_argument("--together", type=int, default=4)
        if name == "paper":
            command.add_argument("--images", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = {"command": " ".join(["python", "benchmarks/search.py", *sys.argv[1:]]), "threads": args.threads}
    about |= {"machine": host(), "versions": packages()}
    results = read_json(args.out) if args.out.exists() else {}
    results[args.part] = PARTS[args.part](args) | {"about": about}
    write_json(args.out, results)
    print(args.part, {k: v for k, v in results[args.part].items() if k not in ("about", "searches")})


if __name__ == "__main__":
    main()
