"""What is wrong in a file of annotations, and what of it was mended: counted by kind, the first three named."""

from pocketformer.errors import UserError
from pocketformer.progress import say

Kinds = dict[tuple[str, str], list[str]]


class Faults:
    """Mistakes and mended entries by kind, in the order in which they were met."""

    def __init__(self, source: str):
        self.source = source
        self.found: Kinds = {}
        self.mended: Kinds = {}

    def add(self, what: str, kind: str, name: str) -> None:
        self.found.setdefault((what, kind), []).append(name)

    def mend(self, what: str, kind: str, name: str) -> None:
        """What can be used all the same; `kind` says as what."""
        self.mended.setdefault((what, kind), []).append(name)

    def lines(self, kinds: Kinds) -> list[str]:
        found = []
        for (what, kind), names in kinds.items():
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            found.append(f"{self.source}: {len(names)} {what}{_ending(what) * (len(names) > 1)} {kind}: {first}")
        return found

    def settle(self, skip: bool) -> None:
        """Says all kinds; unless mistakes are to be skipped, raises `UserError` for them."""
        lines = self.lines(self.found)
        if lines and not skip:
            self._refuse(lines)
        for line in lines:
            say(f"note: {line}; left out")
        for line in self.lines(self.mended):
            say(f"note: {line}")

    def _refuse(self, lines: list[str]) -> None:
        advice = "mend the file, or leave them out by --bad-annotations skip"
        if any("mask" in kind for _, kind in self.found):
            advice += "; or learn boxes alone (--no-masks)"
        if len(lines) == 1:
            raise UserError(f"{lines[0]}; {advice}")
        for line in lines:
            say(line)
        count = sum(map(len, self.found.values()))
        raise UserError(f"{self.source}: {count} mistakes of {len(lines)} kinds, named above; {advice}")


def _ending(what: str) -> str:
    return "es" if what.endswith("x") else "s"
