"""Does a training that is killed end in the very weights of one that is not? SIGKILL at random moments of `train` on
the embedded images, by one process and by two, each time run to its end and compared bit for bit.

    python benchmarks/kills.py --out benchmarks/results/kills.json
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pocketformer.architecture import SearchSpace
from pocketformer.devices.host import host
from pocketformer.files import Lines
from pocketformer.runs import repeated_units, versions

# All that has a state or draws random numbers.
RECIPE = {
    "epochs": 0.2,
    "batch_size": 128,
    "checkpoint_every": 3,
    "ema": 0.9,
    "clip": 0.02,
    "mixup": 0.8,
    "cutmix": 1.0,
    "erase": 0.25,
    "drop_path": 0.1,
    "layer_decay": 0.9,
}
COMPARED = ("model.safetensors", "best.safetensors", "metrics.jsonl")


class Moment(NamedTuple):
    """So many seconds after so many steps."""

    steps: int
    seconds: float


server = multiprocessing.get_context("forkserver")


def work(rank: int, count: int, port: int, arguments: list[str]) -> None:
    """One process of a job, as torchrun starts it."""
    from pocketformer.cli.main import main

    if count > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.argv = ["pocketformer", *arguments]
    main()


def train(folder: Path, count: int, arguments: list[str], moment: Moment | None = None) -> tuple[float, list[int]]:
    """Seconds that the job took, and the exit codes of its processes."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    began = time.monotonic()
    given = [(rank, count, store.port, [*arguments, "--out", str(folder)]) for rank in range(count)]
    members = [server.Process(target=work, args=each) for each in given]
    for member in members:
        member.start()
    if moment is not None:
        while steps_done(folder) < moment.steps and all(member.is_alive() for member in members):
            time.sleep(0.001)
        time.sleep(moment.seconds)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
    for member in members:
        member.join()
    return time.monotonic() - began, [member.exitcode for member in members]


def steps_done(folder: Path) -> int:
    return sum(line["stage"] == "train network" for line in Lines.read(folder / "work.jsonl"))


def kills(folder: Path, count: int, number: int, rng: random.Random, arguments: list[str]) -> dict:
    whole = folder / f"whole_{count}"
    seconds, codes = train(whole, count, arguments)
    assert codes == [0] * count, codes
    found: list[dict] = []
    while len(found) < number:
        killed = folder / f"killed_{count}_{len(found)}"
        # Before the first step and after the last one (while the result is made) as well as between and within steps.
        moment = Moment(rng.randint(0, steps_done(whole)), rng.uniform(0, 0.1 * seconds))
        _, codes = train(killed, count, arguments, moment)
        if -signal.SIGKILL not in codes:  # it had ended
            shutil.rmtree(killed)
            continue
        steps = steps_done(killed)
        _, codes = train(killed, count, arguments)
        assert codes == [0] * count, codes
        equal = {name: (killed / name).read_bytes() == (whole / name).read_bytes() for name in COMPARED}
        again = sum(repeated_units(killed).values())
        after = f"{round(moment.seconds, 3)} s after {moment.steps} steps"
        found.append({"killed": after, "steps_done": steps, "steps_repeated": again, "equal": equal})
        print(count, found[-1], file=sys.stderr, flush=True)
        shutil.rmtree(killed)
    return {"processes": count, "seconds_unbroken": round(seconds, 2), "kills": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each number of processes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums in one order; the server hands it on
    server.set_forkserver_preload(["pocketformer.pipelines.trainings", "torch.utils.tensorboard"])
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        SearchSpace.named("pocket28").smallest.save(folder / "architecture.json")
        arguments = ["train", "--architecture", str(folder / "architecture.json"), "--data", "embedded", "--validate"]
        for name, value in RECIPE.items():
            arguments += ["--set", f"{name}={value}"]
        train(folder / "warm", 1, arguments)  # the server has then imported everything
        runs = [kills(folder, count, args.kills, rng, arguments) for count in (1, 2)]
    outcome = {
        "command": f"python benchmarks/kills.py --kills {args.kills} --seed {args.seed}",
        "machine": host(),
        "versions": versions(),
        "recipe": RECIPE,
        "all_equal": all(all(kill["equal"].values()) for run in runs for kill in run["kills"]),
        "runs": runs,
    }
    text = json.dumps(outcome, indent=1) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text if not args.out else f"all equal: {outcome['all_equal']} ({args.out})")


if __name__ == "__main__":
    main()
