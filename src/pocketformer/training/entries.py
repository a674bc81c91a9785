"""Frozen values of named entries: checked, out of YAML and into it, and changed by NAME=VALUE."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

import yaml

from pocketformer.errors import UserError

Range = tuple[Callable[[float], bool], str]  # what a number may be: a test, and the words for it
POSITIVE: Range = (lambda x: 0 < x < math.inf, "above zero")
NOT_NEGATIVE: Range = (lambda x: 0 <= x < math.inf, "at least zero")
SHARE: Range = (lambda x: 0 <= x < 1, "at least 0 and below 1")


class Entries:
    """Base of recipes, which are frozen dataclasses. `ranges`: of the entries that are numbers; `whole`: those of them
    that are whole ones; `optional`: those that may be None."""

    ranges: ClassVar[Mapping[str, Range]]
    whole: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, (test, wanted) in self.ranges.items():
            value = getattr(self, name)
            if name in self.optional and value is None:
                continue
            if not is_number(value):
                raise UserError(f"recipe: {name} must be a number, not {value!r}")
            if not test(value):
                raise UserError(f"recipe: {name} must be {wanted}, not {value}")
            if name in self.whole:
                if value != int(value):
                    raise UserError(f"recipe: {name} must be a whole number, not {value}")
                object.__setattr__(self, name, int(value))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "recipe") -> Self:
        """Of entries as YAML gives them. Raises `UserError`, in one line that begins with `where`."""
        return cls.made(cls, values, where)

    @classmethod
    def made(cls, make: Callable[..., Self], values: Mapping[str, Any], where: str) -> Self:
        """`make` of entries as YAML gives them, as `from_dict`."""
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in values if name not in known]:
            near = difflib.get_close_matches(str(unknown[0]), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown entry {unknown[0]!r}; {hint}")
        given = {name: as_number(value) if name in cls.ranges else value for name, value in values.items()}
        try:
            return make(**given)
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('recipe: ')}") from None

    def to_dict(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def with_text(self, settings: list[str]) -> Self:
        """The recipe with entries given as `NAME=VALUE`, the values in YAML."""
        changes: dict[str, Any] = {}
        for text in settings:
            name, equals, value = text.partition("=")
            if not equals:
                raise UserError(f"--set {text}: write it as NAME=VALUE")
            try:
                changes[name.strip()] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UserError(f"--set {text}: {value!r} is not a value") from None
        return self.from_dict({**self.to_dict(), **changes}, "--set")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(value: Any) -> Any:
    """YAML takes 1e-3, without a point, for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
