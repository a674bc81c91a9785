"""Teachers of a distillation: timm's models with weights of theirs or of a file, fitted to the data's classes."""

import difflib
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from pocketformer.errors import UserError, first_line
from pocketformer.models import parts, weights
from pocketformer.models.weights import Weights
from pocketformer.progress import say, stage
from pocketformer.training import class_order
from pocketformer.training.class_order import ClassOrder, few

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


def load_teacher(
    text: str, classes: tuple[str, ...], size: tuple[int, int], order: ClassOrder | None = None
) -> nn.Module:
    """A teacher from `NAME` (timm's pretrained weights) or `NAME=FILE` (safetensors, or a torch file of tensors alone);
    frozen, in eval mode, channels last.

    Its `pretrained_cfg` has the mean and std of its images: timm's of that name, or what the file states (ours and
    Hugging Face's do). Classes are matched by name where the file states them, and an ImageNet head by synsets
    (n01440764, ...); others are in `order`. What is cut or permuted is said. Raises `UserError` in one line unless it
    answers for exactly the data's classes on images of `size` (height, width).
    """
    import timm

    name, _, file = text.partition("=")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise UserError(f"teacher {name!r} is not a timm model{hint}")
    teacher = _of_file(name, Path(file), classes, order) if file else _published(name, classes, order)
    teacher = teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    _try(teacher, name, len(classes), size)
    return teacher


def _published(name: str, classes: tuple[str, ...], order: ClassOrder | None) -> nn.Module:
    import timm

    published = timm.get_pretrained_cfg(_PAPERS.get(name, name), allow_unregistered=True)
    if published is None or not published.has_weights:
        raise UserError(f"teacher {name}: timm has no weights of it; give {name}=FILE")
    rows = _rows(f"teacher {name}", None, published.num_classes, classes, order, published=True)
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


def _of_file(name: str, file: Path, classes: tuple[str, ...], order: ClassOrder | None) -> nn.Module:
    import timm

    if not file.exists():
        raise UserError(f"teacher weights not found: {file}")
    found = weights.read(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = timm.create_model(name)
    found = found.of(teacher.state_dict(), file)
    known = _classes_of(name, file, found)
    rows = _rows(f"teacher {file}", found.classes, known, classes, order)
    if rows is None:
        named = f" ({few(found.classes)})" if found.classes and len(found.classes) == known else ""
        theirs = f"{len(classes)} ({few(classes)})" if named else len(classes)
        raise UserError(f"teacher {name}: {file} knows {known} classes{named}, the data has {theirs}{_unnamed(known)}")
    if known != teacher.num_classes:
        teacher.reset_classifier(known)
    own = teacher.state_dict()
    given, notes = _given(teacher, found)
    counters = {n for n in own if n.endswith("num_batches_tracked")}  # not in every file, and without effect
    wrong = [n for n in own if n in given and given[n].shape != own[n].shape]
    wrong += [n for n in own if n not in given and n not in counters]
    wrong += [n for n in given if n not in own]
    if wrong:
        raise UserError(
            f"teacher {name}: {file} holds no weights of it: {len(wrong)} tensors differ, first {weights.first(wrong)}"
        )
    teacher.load_state_dict({**{n: own[n] for n in counters}, **given})
    if len(found.classes or ()) != known and known == len(classes) and not _synsets(known, classes):
        how = f"{class_order.OPTION} {order.rule}" if order else "sorted order"
        notes.append(f"it names no classes; the data's are taken in {how}")
    for note in notes:
        say(f"note: teacher {name}: {note}")
    if found.normalisation is not None:
        mean, std = found.normalisation
        teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": mean, "std": std}
    return _fitted(teacher, name, rows, "ImageNet " if infer_subset(known) else "")


def _given(teacher: nn.Module, found: Weights) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The file's tensors without those that are kept beside a network's, for images of three channels; and notes."""
    given, notes, own = dict(found.tensors), list(found.notes), teacher.state_dict()
    for name in [n for n in given if n not in own and parts.is_beside(n)]:
        del given[name]
    stem = teacher.pretrained_cfg.get("first_conv")
    stem = f"{stem}.weight" if isinstance(stem, str) else ""
    if stem in given and stem in own and given[stem].ndim == own[stem].ndim == 4:
        channels, wanted = given[stem].shape[1], own[stem].shape[1]
        if channels not in (0, wanted):
            given[stem] = parts.adapted(given[stem], wanted)
            notes.append(f"its first convolution, for images of {channels} channels, was adapted to {wanted}")
    return given, notes


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


def _rows(
    what: str,
    named: tuple[str, ...] | None,
    known: int,
    classes: tuple[str, ...],
    order: ClassOrder | None,
    published: bool = False,
) -> list[int] | None:
    """Which of a head's `known` classes are the data's, in the data's order; None: they do not fit.

    By the names that the file states; else by ImageNet's synsets, if the data's classes are named so; else by number,
    but those of `published` weights, which are no data of this person's, only in an `order` that is given.
    """
    named = named or _synsets(known, classes)
    if published and named is None and order is None and known == len(classes):
        raise UserError(
            f"{what}: its {known} classes are those it was published with, and nothing says that the data's "
            f"({few(classes)}) are the same: name the folders by ImageNet's synsets (n01440764, ...), or give "
            f"{class_order.OPTION} FILE with the data's names in the teacher's order"
        )
    return class_order.rows(named, known, classes, order, what, part=True)


def _synsets(known: int, classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names of ImageNet's classes in the order of a head of so many, if the data's are among them."""
    from timm.data import ImageNetInfo

    subset = infer_subset(known)
    names = () if subset is None else tuple(ImageNetInfo(subset).label_names())
    return names if names and set(classes) <= set(names) else None


def infer_subset(known: int) -> str | None:
    """Which of ImageNet's sets of classes has so many."""
    from timm.data import infer_imagenet_subset

    return infer_imagenet_subset({"num_classes": known})


def _unnamed(known: int) -> str:
    """Why a head that looks like ImageNet's was not cut."""
    if infer_subset(known) is None:
        return ""
    return " (a head of ImageNet is cut to classes that are named by its synsets, as n01440764)"


def _fitted(teacher: nn.Module, name: str, rows: list[int], kind: str = "ImageNet ") -> nn.Module:
    if rows == list(range(teacher.num_classes)):
        return teacher
    if len(rows) < teacher.num_classes:
        say(f"note: teacher {name}: of its {teacher.num_classes} {kind}classes, the data's {len(rows)} answer")
    else:
        say(f"note: teacher {name}: its {len(rows)} classes are in another order, and are matched by name")
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
