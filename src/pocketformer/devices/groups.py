"""Candidates measured in groups, each beside the reference; finished groups are kept in a journal."""

import json
import random
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from pocketformer import files
from pocketformer.deploy import SUFFIXES
from pocketformer.devices.bench import Bench
from pocketformer.devices.measure import undisturbed
from pocketformer.devices.plan import REFERENCE

JOURNAL = "profile.jsonl"
_SECONDS = 60.0  # a group takes about so long at most, by fewer rounds where networks are slow
# Of equal files some are loaded to where they run some per cent faster. The reference's luck would be an error of all
# others alike: it is loaded several more times in each part, and the median of these sessions counts.
_COPIES, _COPY = 3, ", copy "

Progress = Callable[[int, int, str], None]
Writer = Callable[[str, Path], None]


class Groups:
    """Measures groups part by part; each part in a process of its own, with files of its own.

    `write(name, path)` writes a candidate. `settings` are what samples depend on besides: with others, the
    journal in `work` starts anew.
    """

    def __init__(self, write: Writer, format: ModuleType, rounds: int, seed: int, work: Path, settings: dict):
        self.write, self.format, self.rounds, self.seed = write, format, rounds, seed
        self.work, self.settings = work, json.loads(json.dumps(settings))

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
        done = {_key(line["part"], line["samples"]): line["samples"] for line in lines[1:]} if same else {}
        parts = {part: _with_copies(groups) for part, groups in parts.items()}
        total, measured, count = sum(map(len, parts.values())), [], 0
        shutil.rmtree(models, ignore_errors=True)  # of a run that was killed
        with files.Lines(path, keep=lambda _: same) as journal:
            if not same:
                journal.write({"settings": self.settings})
            try:
                for part, groups in parts.items():
                    with open_bench() as bench:  # its process starts when it is needed
                        fresh, found = True, []
                        for names in groups:
                            key = _key(part, [*names, REFERENCE])
                            if key not in done:
                                done[key] = self._group(bench, names, fresh, models, count)
                                journal.write({"part": part, "samples": done[key]})
                                fresh = False
                            found.append(done[key])
                            count += 1
                            if progress is not None:
                                progress(count, total, part)
                        measured += _at_usual_reference(found)
            finally:
                shutil.rmtree(models, ignore_errors=True)
        return measured

    def _group(self, bench: Bench, names: list[str], fresh: bool, models: Path, index: int) -> dict[str, list[float]]:
        """Of equal files the one loaded last is some per cent faster: each has a random place, and the reference
        stays the same session for all groups of a part."""
        models.mkdir(parents=True, exist_ok=True)
        order = [*names, REFERENCE] if fresh else list(names)
        random.Random(self.seed + index).shuffle(order)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for name in order:
                path = models / f"candidate{SUFFIXES[self.format.NAME]}"
                self.write(name.partition(_COPY)[0], path)
                bench.load(name, path)
                files.remove(path, self.format.COMPANION)  # not written over: some runtimes still read from it
        names = [*names, REFERENCE]
        samples = bench.interleave(names, self.rounds, seed=self.seed + index, fastest=True, seconds=_SECONDS)
        bench.drop(names[:-1])
        return {name: [round(ms, 6) for ms in times] for name, times in samples.items()}


def _with_copies(groups: list[list[str]]) -> list[list[str]]:
    groups = [list(names) for names in groups]
    for i in range(_COPIES):
        groups[i % len(groups)].append(f"{REFERENCE}{_COPY}{i}")
    return groups


def _at_usual_reference(groups: list[dict[str, list[float]]]) -> list[dict[str, list[float]]]:
    """The groups of a part without copies of the reference, whose own session is taken to be as fast as usual."""
    copies = [
        undisturbed(samples) / undisturbed(group[REFERENCE])
        for group in groups
        for name, samples in group.items()
        if _COPY in name
    ]
    usual = statistics.median([1.0, *copies])
    corrected = []
    for group in groups:
        kept = {name: samples for name, samples in group.items() if _COPY not in name}
        corrected.append({**kept, REFERENCE: [ms * usual for ms in group[REFERENCE]]})
    return corrected


def _key(part: str, names: object) -> tuple[str, frozenset[str]]:
    return part, frozenset(names)
