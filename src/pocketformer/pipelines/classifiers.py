"""A trained classifier as a person names it, ready to be asked: in PyTorch, or through an exported file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pocketformer import files
from pocketformer.architecture.design import Grid
from pocketformer.deploy import SUFFIXES, format_by_name, runtime_of
from pocketformer.deploy.facts import RAW, Facts, facts_path, read_facts
from pocketformer.errors import UserError
from pocketformer.pipelines.facts import classifier_facts
from pocketformer.pipelines.trained import is_weights_alone, load_trained
from pocketformer.progress import stage
from pocketformer.runtimes import runtime
from pocketformer.runtimes.sessions import Sessions
from pocketformer.training.batches import Normalisation, normalisation_of
from pocketformer.training.colours import UNKNOWN
from pocketformer.training.compute import Compute
from pocketformer.training.depths import Depth
from pocketformer.training.pixels import MEAN, OURS, STD


@dataclass(frozen=True)
class Classifier:
    """`forward` maps images (B, 3, H, W) of `size`, normalised by `normalisation`, to logits (B, classes). Images are
    resized to cover `stored_size`, cut to it, and their middle is taken. `classes` is None where nothing names them;
    `weights` is the file or folder that they came from."""

    name: str
    runtime: str
    classes: tuple[str, ...] | None
    num_classes: int
    size: Grid
    stored_size: Grid
    normalisation: Normalisation
    forward: Callable[[torch.Tensor], torch.Tensor]
    weights: Path
    depth: Depth = UNKNOWN  # of images of more than 8 bits
    facts: Facts | None = None  # of its file

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes), on the processor."""
        where = next(self.forward.parameters()).device if isinstance(self.forward, nn.Module) else "cpu"
        return self.forward(images.to(where)).cpu()


@contextmanager
def open_classifier(
    path: str,
    architecture: str | None = None,
    runtime_name: str | None = None,
    file: str | None = None,
    device: str | None = None,
) -> Iterator[Classifier]:
    """The network of a run's folder, of weights alone (with their `architecture`) or of an exported file.

    `file`: an exported file of the network at `path`, anywhere. With `runtime_name` alone, the one in the folder's
    exported/. Raises `UserError` in one line.
    """
    target = Path(path)
    exported = Path(file) if file is not None else target if format_by_name(target) is not None else None
    if exported is not None and not exported.exists():
        raise UserError(f"no such file: {exported}")
    folder = _folder_of(target)
    if exported is None and runtime_name is None:
        yield _in_pytorch(path, target if is_weights_alone(target) else folder, architecture, device)
        return
    if (exported is None or file is not None) and is_weights_alone(target):
        raise UserError(f"{path} holds weights alone: `export` it, and give the file that it wrote here")
    format = None if exported is None else format_by_name(exported)
    if exported is not None and format is None:
        raise UserError(
            f"--file {exported}: no format of exported files ends so; known: {', '.join(SUFFIXES.values())}"
        )
    if runtime_name is None:
        runtime_name = runtime_of(format)
        if runtime_name is None:
            raise UserError(f"{exported}: no runtime here can run {format} files")
    exported = _checked(exported, format, folder, runtime_name)
    facts = _facts_of(exported, folder)
    with Sessions(runtime_name, device=device) as sessions:
        with stage(f"load {exported.name}"):  # torch.compile takes a minute
            shape = sessions.load(str(exported), exported)
        if shape == (1, *facts.size, 3):  # whatever the folder says
            facts = replace(facts, layout=RAW[0], dtype=RAW[1])
        if shape != facts.shape:
            raise UserError(f"{exported} takes inputs of shape {shape}; this network's are {facts.shape}")

        def forward(images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(sessions.run(str(exported), (_as_bytes(images) if facts.raw else images).numpy()))

        classes, given = facts.classes, forward(torch.zeros(1, 3, *facts.size)).shape
        if len(given) != 2:
            raise UserError(f"{exported} gives outputs of shape {tuple(given)}, not a classifier's (1, classes)")
        if classes is not None and len(classes) != given[1]:
            raise UserError(
                f"{exported} knows {given[1]} classes, but {len(classes)} are named for it: another's facts"
            )
        normalisation = OURS if facts.raw else Normalisation(tuple(facts.mean), tuple(facts.std))
        sizes = tuple(facts.size), tuple(facts.stored_size or facts.size)
        depth = Depth.of_record({"depth": facts.depth}) if facts.depth else _depth_of(folder)
        about = exported, depth, facts
        yield Classifier(path, runtime_name, classes, given[1], *sizes, normalisation, forward, *about)


def _folder_of(target: Path) -> Path:
    """The run's folder of what is named: itself, or where a file of it lies."""
    inside = format_by_name(target) is not None or target.suffix == ".safetensors"
    folder = target.parent if inside else target
    return folder.parent if inside and folder.name == "exported" else folder


def _in_pytorch(path: str, source: Path, architecture: str | None, device: str | None) -> Classifier:
    model, config = load_trained(source, architecture)
    stored = tuple(config["data"].get("stored_size", model.resolution))
    classes = None if config["classes"] is None else tuple(config["classes"])
    normalisation = normalisation_of(model)
    where = Compute(device or "cpu").where
    model = model.to(where)
    sizes, depth = (model.resolution, stored), Depth.of_record(config["data"])
    return Classifier(path, "torch", classes, model.num_classes, *sizes, normalisation, model, source, depth)


def _checked(exported: Path | None, format: str | None, folder: Path, runtime_name: str) -> Path:
    """The file to run: the one named, or the folder's own in the runtime's format."""
    wanted = runtime(runtime_name).FORMAT
    if format not in (None, wanted):
        raise UserError(f"{exported}: {runtime_name} runs {wanted} files ({SUFFIXES[wanted]}), not this one")
    found = exported or folder / "exported" / f"model{SUFFIXES[wanted]}"
    if not found.exists():
        raise UserError(
            f"no exported file at {found}: `pocketformer export --checkpoint {folder} --format {wanted} --out {found}` "
            "writes one; of a file elsewhere, give its path as --checkpoint"
        )
    return found


def _facts_of(exported: Path, folder: Path) -> Facts:
    """What the file says, or its JSON; else what the run's folder does."""
    found = read_facts(exported)
    if found is None:
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{exported} says nothing of its classes and images: put {facts_path(exported).name}, which `export` "
                f"wrote with it, beside it, or name the run that it came from: --checkpoint RUN --file {exported}"
            )
        found = classifier_facts(*load_trained(folder, None), {})
    if found.task != "classification":
        raise UserError(f"{exported} is a file for {found.task}, not of a classifier")
    return found


def _depth_of(folder: Path) -> Depth:
    """The rule by which the run of the folder decoded its images, where it is there."""
    config = folder / "config.json"
    found = files.read_json(config, "model configuration") if config.is_file() else {}
    return Depth.of_record(found.get("data", {}) if isinstance(found, dict) else {})


def _as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) that were normalised by ours, as a raw file takes them: uint8 (B, H, W, 3)."""
    return ((images * STD + MEAN) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
