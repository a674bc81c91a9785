"""Model files timed side by side, in a process of their own."""

from collections.abc import Callable, Sequence

from pocketformer.devices.measure import interleave, interleaved_calls
from pocketformer.runtimes.sessions import Sessions, prepared


class Bench(Sessions):
    """Sessions that can be timed."""

    def interleave(
        self,
        names: Sequence[str],
        rounds: int,
        calls: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        seed: int = 0,
        *,
        fastest: bool = False,
        seconds: float | None = None,
    ) -> dict[str, list[float]]:
        """`measure.interleave` of the named sessions, each on a fixed random input: name to ms in each round."""
        for name in names:  # one that crashes is then known by name
            self.worker.call(_warm_up, name, what=f"{self.runtime} crashed while it ran {name}")
        what = f"{self.runtime} crashed while networks were timed"
        settings = (list(names), rounds, calls, seed, fastest, seconds)
        return self.worker.call(_interleave, *settings, what=what, progress=progress or (lambda *_: None))

    def calls(
        self,
        names: Sequence[str],
        rounds: int,
        calls: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        seed: int = 0,
    ) -> dict[str, list[list[float]]]:
        """`measure.interleaved_calls` of the named sessions."""
        for name in names:
            self.worker.call(_warm_up, name, what=f"{self.runtime} crashed while it ran {name}")
        what = f"{self.runtime} crashed while networks were timed"
        settings = (list(names), rounds, calls, seed)
        return self.worker.call(_calls, *settings, what=what, progress=progress or (lambda *_: None))


def _warm_up(name: str) -> None:
    prepared(name)


def _calls(
    names: list[str], rounds: int, calls: int | None, seed: int, progress: Callable[[int, int], None]
) -> dict[str, list[list[float]]]:
    return interleaved_calls({name: prepared(name) for name in names}, rounds, calls, progress, seed)


def _interleave(
    names: list[str],
    rounds: int,
    calls: int | None,
    seed: int,
    fastest: bool,
    seconds: float | None,
    progress: Callable[[int, int], None],
) -> dict[str, list[float]]:
    runs = {name: prepared(name) for name in names}
    return interleave(runs, rounds, calls, progress, seed, fastest=fastest, seconds=seconds)
