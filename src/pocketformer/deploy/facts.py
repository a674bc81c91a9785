"""What a user of an exported file must know: its classes, what to do with an image, where it comes from."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from pocketformer import files
from pocketformer.architecture import Architecture
from pocketformer.architecture.published import name_of
from pocketformer.deploy.formats import format_by_name, format_of
from pocketformer.errors import UserError
from pocketformer.models.registry import CUSTOM

FLOAT, RAW = ("NCHW", "float32"), ("NHWC", "uint8")  # layouts and types of inputs
MARK = "pocketformer"  # the fact by which ours are told from others' metadata: the version that wrote the file


@dataclass(frozen=True, kw_only=True)
class Facts:
    """`mean`, `std`: in shares of 255, as timm gives them, one a channel; of a raw file they are in its graph.

    `size`, `stored_size`: height and width, px. `framing`: "crop": an upright image is resized to cover
    `stored_size`, cut to that, and its middle `size` is taken; "fit": resized to fit into `size`, its shape kept,
    and padded below and on the right with the mean; "any": `size` px of an image, at the scale of the training.
    `first_label`: the label of the first class. `licence`: of the weights, None where nobody stated it.
    `fingerprint`: of the images that the training saw; `seed` and `group_by` split them. `depth`: how its images of
    more than 8 bits became bytes (`training.depths`), None where it had none.
    """

    task: str
    architecture: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None = None
    first_label: int = 0
    framing: str = "crop"
    stored_size: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    input: str = "image"
    outputs: tuple[str, ...] = ("logits",)
    layout: str = FLOAT[0]
    dtype: str = FLOAT[1]
    dynamic_batch: bool = False
    format: str = "onnx"
    precision: str = "float32"
    licence: str | None = None
    fingerprint: str | None = None
    seed: int | None = None
    group_by: str | None = None
    depth: dict | None = None
    pocketformer: str = version("pocketformer")

    @property
    def raw(self) -> bool:
        """Whether the file takes bytes (B, H, W, C) as images come, and normalises them itself."""
        return self.dtype == RAW[1]

    @property
    def crop(self) -> float | None:
        """The share of the stored image's side that the network sees, the lesser one of both sides."""
        if self.stored_size is None:
            return None
        return min(size / stored for size, stored in zip(self.size, self.stored_size, strict=True))

    @property
    def colour(self) -> str:
        return {1: "grey", 3: "RGB"}.get(len(self.mean), f"{len(self.mean)} channels")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input, for one image."""
        channels = len(self.mean)
        return (1, *self.size, channels) if self.raw else (1, channels, *self.size)

    def to_dict(self) -> dict[str, Any]:
        """As the JSON beside the file holds it; what follows from the rest is spelt out."""
        derived = {"colour": self.colour, "crop": self.crop, "shape": self.shape}
        return files.as_json({MARK: self.pocketformer, **asdict(self), **derived})

    @classmethod
    def from_dict(cls, values: Any) -> "Facts":
        """What `to_dict` gave, also by a newer version. Raises `UserError` for anything else."""
        if not isinstance(values, Mapping) or not isinstance(values.get(MARK), str):
            raise UserError("not written by pocketformer")
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        try:
            found = cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in known.items()})
        except TypeError:
            given = [field.name for field in fields(cls)[:5]]
            raise UserError(f"no {', '.join(name for name in given if name not in known)}") from None
        for name, fits in _FITS.items():
            if not fits(value := getattr(found, name)):
                raise UserError(f"{name} cannot be {json.dumps(value, default=str)[:60]}")
        if len(found.mean) != len(found.std):
            raise UserError("mean and std are of different lengths")
        return found

    def metadata(self) -> dict[str, str]:
        """As text by plain names, for formats that hold such: words as they are, the rest as JSON, no unknown ones."""
        values = {name: value for name, value in self.to_dict().items() if value is not None}
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in values.items()
        }

    @classmethod
    def from_metadata(cls, texts: Mapping[str, str]) -> "Facts | None":
        """What `metadata` gave, among others' entries; None where none is ours, `UserError` where it is broken."""
        if MARK not in texts:
            return None
        words = {field.name for field in fields(cls) if "str" in str(field.type) and "tuple" not in str(field.type)}
        values = {}
        for name, text in texts.items():
            try:
                values[name] = text if name in words else json.loads(text)
            except json.JSONDecodeError:  # another's entry, or a damaged one, which `from_dict` then misses
                continue
        return cls.from_dict(values)


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)


def _are(kind: type | tuple[type, ...]):
    return lambda value: isinstance(value, tuple) and bool(value) and all(isinstance(v, kind) for v in value)


_FITS = {
    **dict.fromkeys(("size",), _is_size),
    "stored_size": lambda value: value is None or _is_size(value),
    "mean": lambda value: _are((int, float))(value) and all(map(math.isfinite, value)),
    "std": lambda value: _are((int, float))(value) and all(0 < v < math.inf for v in value),
    "classes": lambda value: value is None or _are(str)(value),
    "outputs": _are(str),
    "first_label": lambda value: isinstance(value, int),
    "dynamic_batch": lambda value: isinstance(value, bool),
    "depth": lambda value: value is None or isinstance(value, dict),
    **dict.fromkeys(
        ("task", "architecture", "framing", "interpolation", "input", "layout", "dtype", "format", "precision"),
        lambda value: isinstance(value, str),
    ),
    "seed": lambda value: value is None or (isinstance(value, int) and value >= 0),
    **dict.fromkeys(("licence", "fingerprint", "group_by"), lambda value: value is None or isinstance(value, str)),
}


def facts_of(model: nn.Module) -> Facts:
    """What a network alone tells. `model`: ours, with a classifier, or anything with a `resolution` and `in_chans`."""
    cfg = getattr(model, "pretrained_cfg", {})
    values = {name: tuple(cfg.get(name, (0.5,))) for name in ("mean", "std")}
    return Facts(
        task="classification",
        architecture=architecture_name(getattr(model, "architecture", None)),
        size=tuple(model.resolution),
        **{n: v if len(v) == model.in_chans else (sum(v) / len(v),) * model.in_chans for n, v in values.items()},
    )


def architecture_name(architecture: Architecture | None) -> str:
    """The published one's, else the one by which timm makes it from its description."""
    return (architecture and name_of(architecture)) or CUSTOM


def facts_path(file: str | Path) -> Path:
    """Where the facts of a file lie: beside it, `.json` behind its whole name."""
    return Path(file).with_name(f"{Path(file).name}.json")


def companion(file: str | Path) -> str:
    """The suffix by which `files.whole` takes the facts along with a file."""
    return f"{Path(file).suffix}.json"


def write_facts(file: str | Path, facts: Facts) -> None:
    """Beside a file that is being written whole; with `companion` they appear together."""
    text = json.dumps(facts.to_dict(), indent=1, ensure_ascii=False)
    facts_path(file).write_text(f"{text}\n", encoding="utf-8")


def read_facts(file: str | Path) -> Facts | None:
    """The facts of an exported file: from the file itself, and from the JSON beside it; None where neither has any.

    Raises `UserError` for what is damaged, and where the two are not of the same file: one was moved without the other.
    """
    path, own = facts_path(file), _facts_within(file)
    if not path.is_file():
        return own
    try:
        beside = Facts.from_dict(files.read_json(path, "list of facts"))
    except UserError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path} holds no facts of {file} ({text})") from None
    if own is not None and (name := _first_difference(own, beside)):
        found, said = (json.dumps(getattr(facts, name), ensure_ascii=False)[:60] for facts in (own, beside))
        raise UserError(
            f"{path} is of another file: there {name} is {said}, in {file} {found}; put its own there, or remove it"
        )
    return beside


def _first_difference(one: Facts, other: Facts) -> str | None:
    """The first fact in which they differ, that of the weights' licence apart, which people add later."""
    names = (field.name for field in fields(Facts) if field.name != "licence")
    return next((name for name in names if getattr(one, name) != getattr(other, name)), None)


def _facts_within(file: str | Path) -> Facts | None:
    """What the file itself says, where its format has a place for that."""
    name = format_by_name(file)
    try:
        read = getattr(format_of(name), "read_metadata", None) if name and Path(file).exists() else None
    except UserError:  # the library that could read it is not installed
        return None
    found = None if read is None else read(Path(file))
    try:
        return None if found is None else Facts.from_metadata(found)
    except UserError as error:
        raise UserError(f"{file}: its metadata are damaged ({error})") from None
