"""Names of classes as files state them: in timm's, Hugging Face's and torchvision's forms, and in other trainings'."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pocketformer.models.pickles import Placeholder

_KEYS = (
    *("label_names", "classes", "class_names", "CLASSES", "class_to_idx", "idx_to_class", "id2label", "label2id"),
    *("class_to_index", "index_to_class", "idx2label", "label2idx", "labels", "categories", "names"),
)
_AROUND = (
    *("pretrained_cfg", "meta", "dataset_meta", "hyper_parameters", "datamodule_hyper_parameters", "hparams", "args"),
    *("config", "cfg", "info"),
)
_NUMBERED = re.compile(r"LABEL_\d+")  # Hugging Face's where nobody gave names


def stated(value: Any, depth: int = 4) -> tuple[str, ...] | None:
    """The names in a file's plain values, in the order of its classifier's rows; None if there are none."""
    found = _mapping(value)
    for key in _KEYS:
        if key in found and (names := listed(found[key])) is not None:
            return names
    for key in _AROUND if depth else ():
        if key in found and (names := stated(found[key], depth - 1)) is not None:
            return names
    return None


def listed(value: Any) -> tuple[str, ...] | None:
    """The names of a list, {index: name} or {name: index}, also as JSON; None if it is none of these."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, Placeholder):
        value = value.entries or value.items or value.attributes
    if isinstance(value, Mapping):
        value = _by_index(value)
    names = tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return None if all(map(_NUMBERED.fullmatch, names)) else names


def _mapping(value: Any) -> Mapping:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    value = value.attributes if isinstance(value, Placeholder) else value
    return value if isinstance(value, Mapping) else {}


def _by_index(value: Mapping) -> list:
    if all(type(place) is int for place in value.values()):
        value = {place: name for name, place in value.items()}
    try:
        value = {int(place): name for place, name in value.items()}
    except (TypeError, ValueError):
        return []
    return [value[place] for place in sorted(value)] if sorted(value) == list(range(len(value))) else []
