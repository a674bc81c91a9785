"""The manifest of emitted models: what each file is, so that times measured elsewhere become a table. No torch."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketformer import files
from pocketformer.architecture import Architecture, SearchSpace
from pocketformer.devices.plan import REFERENCE, Plan
from pocketformer.errors import UserError

FORMAT = "pocketformer.models/1"
NAME = "manifest.json"
_ROLES = ("network", "check")


@dataclass(frozen=True)
class Model:
    """One file: `short` is what it and its results are called, `name` the candidate's name in the plan, `shape` that
    of its float32 input."""

    short: str
    file: str
    name: str
    role: str
    shape: tuple[int, ...]
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A plan as model files. `settings` are those that samples depend on: format, batch, seed and versions."""

    plan: Plan
    settings: dict[str, Any]
    models: tuple[Model, ...]

    @property
    def id(self) -> str:
        """The fingerprint that results carry: no other models were timed."""
        return digest(self._content())

    def named(self, text: str) -> Model:
        """The model of a short name, file name or candidate's name. Raises `UserError` if there is none."""
        for model in self.models:
            if text in (model.short, model.file, model.name):
                return model
        raise UserError(f"{text!r} is none of the manifest's {len(self.models)} models")

    @property
    def bytes(self) -> int:
        return sum(model.bytes for model in self.models)

    def _content(self) -> dict:
        whole, models = self.plan.whole, []
        for model in self.models:
            models.append({**model.__dict__, "shape": list(model.shape)})
            if model.role in _ROLES:
                models[-1]["architecture"] = whole[model.name].to_dict()
        return {
            "format": FORMAT,
            "space": self.plan.space.to_dict(),
            "num_classes": self.plan.num_classes,
            "settings": self.settings,
            "models": models,
        }

    def save(self, folder: Path) -> None:
        files.write_json(folder / NAME, {"id": self.id, **self._content()})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Manifest":
        """Raises `UserError` for what is no manifest, has been changed, or is of another version."""
        values = files.read_json(path, "manifest")
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UserError(f"manifest {path}: not a manifest of emitted models (no format {FORMAT!r})")
        content = {key: value for key, value in values.items() if key != "id"}
        if values.get("id") != digest(content):
            raise UserError(f"manifest {path} has been changed since the models were written")
        try:
            models = tuple(Model(**{k: m[k] for k in Model.__dataclass_fields__}) for m in values["models"])
            plan, settings = cls._plan(values, str(path)), values["settings"]
        except (KeyError, TypeError):
            raise UserError(f"manifest {path} was written by another version of pocketformer") from None
        if plan.roles != {model.name: model.role for model in models}:
            raise UserError(f"manifest {path} was written by a version of pocketformer that times other chains")
        return cls(plan, settings, models)

    @staticmethod
    def _plan(values: dict, where: str) -> Plan:
        members: dict[str, dict[str, Architecture]] = {role: {} for role in _ROLES}
        for model in values["models"]:
            if model["role"] in _ROLES:
                members[model["role"]][model["name"]] = Architecture.from_dict(model["architecture"], where)
        space = SearchSpace.from_dict(values["space"], where)
        return Plan(space, values["num_classes"], members["network"], members["check"])


def input_shape(plan: Plan, name: str, batch: int) -> tuple[int, ...]:
    """What a candidate takes: a chain what its first block does, a network images."""
    if name in plan.chains:
        first = plan.chains[name].blocks[0]
        return (batch, first.inputs, *first.grid)
    return (batch, 3, *plan.space.resolution)


def digest(value: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path, companion: str | None) -> tuple[str, int]:
    """sha256 and bytes of a file or folder, and of its companion."""
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    parts += [path.with_suffix(companion)] if companion else []
    found, size = hashlib.sha256(), 0
    for part in parts:
        data = part.read_bytes()
        found.update(data)
        size += len(data)
    return found.hexdigest(), size


def short_names(plan: Plan) -> dict[str, str]:
    """Candidate's name to what its file is called: words, digits and underscores only."""
    count = dict.fromkeys(("chain", "network", "check"), 0)
    names = {}
    for name, role in plan.roles.items():
        if role in count:
            names[name] = f"{role}_{count[role]:03d}"
            count[role] += 1
        else:
            names[name] = "reference" if name == REFERENCE else "unit"
    return names
