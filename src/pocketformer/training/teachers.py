"""Teachers of a distillation: timm's models with weights of theirs or of a file, fitted to the data's classes."""

import difflib
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from pocketformer.errors import UserError, first_line
from pocketformer.models import weights
from pocketformer.models.weights import Weights
from pocketformer.progress import say, stage

# The papers' teacher is DeiT's; under the bare name timm now has other weights.
_PAPERS = {"regnety_160": "regnety_160.deit_in1k"}


class Cut(nn.Module):
    """Of a network's classes only `rows`, in that order: images (B, 3, H, W) to logits (B, len(rows))."""

    def __init__(self, network: nn.Module, rows: list[int]):
        super().__init__()
        self.network = network
        self.pretrained_cfg = network.pretrained_cfg  # whose mean and std the images are to have
        self.register_buffer("rows", torch.tensor(rows), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)[:, self.rows]


def check_distillation(teacher: str | None, distillation: str) -> None:
    """Raises `UserError` where there is no teacher whose probabilities could be learned from."""
    if teacher is None and distillation != "hard":
        raise UserError("--distillation says how to learn from a teacher: give --teacher")


def load_teacher(text: str, classes: tuple[str, ...], size: tuple[int, int]) -> nn.Module:
    """A teacher from `NAME` (timm's pretrained weights) or `NAME=FILE` (safetensors, or a torch file of tensors alone);
    frozen, in eval mode, channels last.

    Its `pretrained_cfg` has the mean and std of its images: timm's of that name, or what the file states (ours and
    Hugging Face's do). A head of ImageNet classes is cut to `classes` where these are named by synsets (n01440764,
    ...), which is said. Raises `UserError` in one line unless it answers for exactly the data's classes on images of
    `size` (height, width).
    """
    import timm

    name, _, file = text.partition("=")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"teacher {name!r} is not a timm model{hint}")
    teacher = _of_file(name, Path(file), classes) if file else _published(name, classes)
    teacher = teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    _try(teacher, name, len(classes), size)
    return teacher


def _published(name: str, classes: tuple[str, ...]) -> nn.Module:
    import timm

    published = timm.get_pretrained_cfg(_PAPERS.get(name, name), allow_unregistered=True)
    if published is None or not published.has_weights:
        raise UserError(f"teacher {name}: timm has no weights of it; give {name}=FILE")
    rows = _rows(published.num_classes, classes)
    if rows is None:  # timm would give it a new head, which knows nothing
        raise UserError(
            f"teacher {name}: knows {published.num_classes} classes, the data has {len(classes)}"
            f"{_unnamed(published.num_classes)}; give weights trained on them as {name}=FILE"
        )
    try:
        with stage("load the teacher"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # no line for each attempt
            teacher = timm.create_model(_PAPERS.get(name, name), pretrained=True)
    except Exception as error:  # whatever a library raises, the user sees one line
        raise UserError(f"teacher {name}: its weights cannot be had ({first_line(error)})") from None
    return _fitted(teacher, name, rows)


def _of_file(name: str, file: Path, classes: tuple[str, ...]) -> nn.Module:
    import timm

    if not file.exists():
        raise UserError(f"teacher weights not found: {file}")
    found = weights.read(file)
    known = _classes_of(name, file, found)
    rows = _rows(known, classes)
    if rows is None:
        raise UserError(f"teacher {name}: {file} knows {known} classes, the data has {len(classes)}{_unnamed(known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = timm.create_model(name, num_classes=known)
    own = teacher.state_dict()
    counters = {n for n in own if n.endswith("num_batches_tracked")}  # not in every file, and without effect
    wrong = [n for n in own if n in found.tensors and found.tensors[n].shape != own[n].shape]
    wrong += [n for n in own if n not in found.tensors and n not in counters]
    wrong += [n for n in found.tensors if n not in own]
    if wrong:
        raise UserError(
            f"teacher {name}: {file} holds no weights of it: {len(wrong)} tensors differ, first {weights.first(wrong)}"
        )
    teacher.load_state_dict({**{n: own[n] for n in counters}, **found.tensors})
    if found.normalisation is not None:
        mean, std = found.normalisation
        teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": mean, "std": std}
    return _fitted(teacher, name, rows)


def _classes_of(name: str, file: Path, found: Weights) -> int:
    """How many classes the weights of a file know, by the bias or the rows of their (first) classifier."""
    import timm

    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    heads = published.classifier if published else None
    head = heads if isinstance(heads, str) or not heads else heads[0]
    tensor = found.tensors.get(f"{head}.weight", found.tensors.get(f"{head}.bias"))
    if tensor is None or tensor.ndim == 0:
        raise UserError(f"teacher {name}: {file} holds no classifier of it ({head}.weight)")
    return len(tensor)


def _rows(known: int, classes: tuple[str, ...]) -> list[int] | None:
    """Which of a head's `known` classes are the data's, in the data's order; None: they do not fit.

    Classes that are named by ImageNet's synsets are found by name, others by their number.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": known})
    if subset is not None:
        place = {synset: row for row, synset in enumerate(ImageNetInfo(subset).label_names())}
        if all(name in place for name in classes):
            return [place[name] for name in classes]
    return list(range(known)) if known == len(classes) else None


def _unnamed(known: int) -> str:
    """Why a head that looks like ImageNet's was not cut."""
    from timm.data import infer_imagenet_subset

    if infer_imagenet_subset({"num_classes": known}) is None:
        return ""
    return " (a head of ImageNet is cut to classes that are named by its synsets, as n01440764)"


def _fitted(teacher: nn.Module, name: str, rows: list[int]) -> nn.Module:
    if rows == list(range(teacher.num_classes)):
        return teacher
    say(f"note: teacher {name}: of its {teacher.num_classes} ImageNet classes, the data's {len(rows)} answer")
    return Cut(teacher, rows)


@torch.no_grad()
def _try(teacher: nn.Module, name: str, classes: int, size: tuple[int, int]) -> None:
    """One black image: some networks take only the size that they were made for."""
    try:
        found = tuple(teacher(torch.zeros(1, 3, *size)).shape)
    except Exception as error:  # whatever it raises, the user sees one line
        raise UserError(
            f"teacher {name} does not take images of {size[0]}×{size[1]} px ({first_line(error)})"
        ) from None
    if found != (1, classes):
        raise UserError(f"teacher {name} answers with {found}, not with logits of {classes} classes")
