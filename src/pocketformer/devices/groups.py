"""Candidates measured in groups, each beside the reference; finished groups are kept in a journal."""

import random
import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import torch

from pocketformer import files
from pocketformer.deploy import SUFFIXES
from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import undisturbed
from pocketformer.devices.plan import REFERENCE
from pocketformer.progress import say
from pocketformer.runs import differences

METHOD = 6  # raised when measurements of an older journal must not be used any more
JOURNAL = "profile.jsonl"
_SECONDS = 60.0  # a group takes about so long at most, by fewer rounds where networks are slow
# Of equal files some are loaded to where they run some per cent faster. The reference's luck would be an error of all
# others alike: it is loaded several more times for each part, and the median of these sessions counts. After an
# interruption it is loaded anew, with another luck: groups are corrected by copies loaded in the same process.
_COPIES, _COPY = 3, ", copy "

Progress = Callable[[int, int, str], None]
Writer = Callable[[str, Path], None]


class Groups:
    """Measures groups part by part; each part in a process of its own, with files of its own.

    `write(name, path)` writes a candidate. `settings` are what samples depend on besides: with others, the
    journal in `work` starts anew, and says so.
    """

    def __init__(self, write: Writer, format: ModuleType, rounds: int, seed: int, work: Path, settings: dict):
        self.write, self.format, self.rounds, self.seed = write, format, rounds, seed
        self.work, self.settings = work, files.as_json({"method": METHOD, **settings})

    def measure(
        self,
        parts: dict[str, list[list[str]]],
        open_bench: Callable[[], Bench],
        progress: Progress | None,
    ) -> list[dict[str, list[float]]]:
        """The samples of all groups, name to ms in each round, from the journal where it has them. The reference's are
        those of its usual session, as `_COPIES` tells it."""
        path, models = self.work / JOURNAL, self.work / "models"
        lines = files.Lines.read(path)
        same = bool(lines) and lines[0] == {"settings": self.settings}
        if len(lines) > 1 and not same:
            changed = differences(lines[0].get("settings"), self.settings)
            say(f"starting anew: {'; '.join(changed[:3])}{' and more' * (len(changed) > 3)}")
        lines = lines[1:] if same else []
        done = {_key(line["part"], line["samples"]): line for line in lines}
        process = max((line["process"] for line in lines), default=-1)
        total, measured, count = sum(map(len, parts.values())), [], 0
        shutil.rmtree(models, ignore_errors=True)  # of a run that was killed
        with files.Lines(path, keep=lambda _: same) as journal:
            if not same:
                journal.write({"settings": self.settings})
            try:
                for part, groups in parts.items():
                    keys = [_key(part, names) for names in groups]
                    copies = _copies([key for key in keys if key not in done])
                    process += 1
                    with open_bench() as bench:  # its process starts when it is needed
                        fresh = True
                        for names, key in zip(groups, keys, strict=True):
                            if key not in done:

                                def told(text: str, count: int = count, part: str = part) -> None:
                                    if progress is not None:
                                        progress(count, total, f"{part}, {text}")

                                samples = self._group(bench, [*names, *copies[key]], fresh, models, count, told)
                                done[key] = {"part": part, "process": process, "samples": samples}
                                journal.write(done[key])
                                fresh = False
                            count += 1
                            if progress is not None:
                                progress(count, total, part)
                    measured += _at_usual_reference([done[key] for key in keys])
            finally:
                shutil.rmtree(models, ignore_errors=True)
        return measured

    def _group(
        self, bench: Bench, names: list[str], fresh: bool, models: Path, index: int, told: Callable[[str], None]
    ) -> dict[str, list[float]]:
        """Of equal files the one loaded last is some per cent faster: each has a random place, and the reference
        stays the same session for all groups of a process."""
        models.mkdir(parents=True, exist_ok=True)
        suffix, companion = SUFFIXES[self.format.NAME], self.format.COMPANION
        reference = models / f"reference{suffix}"
        order = [*names, REFERENCE] if fresh else list(names)
        random.Random(self.seed + index).shuffle(order)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for i, name in enumerate(order, 1):
                told(f"write model {i} of {len(order)}")
                path = models / f"candidate{suffix}"
                if name.partition(_COPY)[0] != REFERENCE:
                    self.write(name, path)
                else:
                    if not reference.exists():
                        self.write(REFERENCE, reference)
                    files.copy(reference, path, companion)
                bench.load(name, path)
                files.remove(path, companion)  # not written over: some runtimes still read from it
        names = [*names, REFERENCE]

        def timed(done: int, rounds: int) -> None:
            told(f"time {len(names)} models: round {done} of {rounds}")

        options = {"fastest": True, "seconds": _SECONDS}
        samples = bench.interleave(names, self.rounds, progress=timed, seed=self.seed + index, **options)
        bench.drop(names[:-1])
        return {name: [round(ms, 6) for ms in times] for name, times in samples.items()}


# A group in the journal: its part and its candidates, the reference and its copies left out.
Key = tuple[str, frozenset[str]]


def _key(part: str, names: Iterable[str]) -> Key:
    return part, frozenset(name for name in names if name != REFERENCE and _COPY not in name)


def _copies(keys: list[Key]) -> dict[Key, list[str]]:
    """The copies of the reference in each of the groups that a process measures: in the first ones."""
    copies: dict[Key, list[str]] = {key: [] for key in keys}
    for i in range(_COPIES if keys else 0):
        copies[keys[i % len(keys)]].append(f"{REFERENCE}{_COPY}{i}")
    return copies


def _at_usual_reference(lines: list[dict]) -> list[dict[str, list[float]]]:
    """The groups of a part, from the journal's lines, without copies of the reference. The reference's own session in
    each process is taken to be as fast as is usual there."""
    lucks: dict[int, list[float]] = {}
    for line in lines:
        samples = line["samples"]
        luck = lucks.setdefault(line["process"], [1.0])
        luck += [undisturbed(ms) / undisturbed(samples[REFERENCE]) for name, ms in samples.items() if _COPY in name]
    corrected = []
    for line in lines:
        kept = {name: ms for name, ms in line["samples"].items() if _COPY not in name}
        usual = statistics.median(lucks[line["process"]])
        corrected.append({**kept, REFERENCE: [ms * usual for ms in kept[REFERENCE]]})
    return corrected
