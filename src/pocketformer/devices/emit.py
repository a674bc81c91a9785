"""`--emit-models`: everything a profile would time as model files, for devices that cannot run Python."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from pocketformer import files
from pocketformer.deploy import SUFFIXES, format_of
from pocketformer.devices.candidates import write_candidate
from pocketformer.devices.host import packages
from pocketformer.devices.manifest import Manifest, Model, file_digest, input_shape, short_names
from pocketformer.devices.plan import Plan
from pocketformer.devices.recipes import recipe
from pocketformer.errors import UserError

JOURNAL = ".emitted.jsonl"

# Formats whose files run only where they were compiled, and what is emitted for such devices.
_NOT_PORTABLE = {"tensorrt": "onnx (trtexec builds the engine on the device)", "aotinductor": "torch"}


def check_format(name: str, precision: str) -> ModuleType:
    """The format's module. Raises `UserError` if files of it cannot be carried, or lack that precision."""
    if name in _NOT_PORTABLE:
        raise UserError(f"{name} files run only on the machine they were made on; emit {_NOT_PORTABLE[name]}")
    format = format_of(name)
    if precision == "int8" or precision not in format.PRECISIONS:
        raise UserError(f"models of format {name} are not emitted in {precision!r}")
    return format


def emit(
    plan: Plan,
    format_name: str,
    folder: Path,
    *,
    precision: str = "float32",
    batch: int = 1,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Manifest:
    """Writes every candidate of the plan into `folder`/models in that format, with a manifest and a recipe.

    Interrupted, the same call goes on: files that were finished stay. The runtime need not be there, the
    format's converter must. Raises `UserError` if it is not, for what `check_format` refuses, and if the folder holds
    models of other settings, or anything else.
    """
    format = check_format(format_name, precision)
    writer = format
    if precision != "float32":
        writer = SimpleNamespace(write_quick=lambda *args: format.write(*args, precision))
    settings = {"model_format": format_name, "precision": precision, "batch": batch, "seed": seed}
    settings |= {"packages": packages()}
    wanted = {**settings, "space": plan.space.to_dict(), "num_classes": plan.num_classes, "names": plan.roles}
    wanted |= {"members": {n: a.to_dict() for n, a in plan.whole.items()}}
    wanted = files.as_json(wanted)
    lines = files.Lines.read(folder / JOURNAL)
    if not lines and folder.exists() and any(p.name != JOURNAL for p in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no emission that could go on; give another folder")
    if lines and lines[0] != wanted:
        raise UserError(f"{folder} holds models of other settings; give another folder")
    models = {line["name"]: Model(**line) for line in lines[1:]}
    with files.Lines(folder / JOURNAL) as journal:
        if not lines:
            journal.write(wanted)
        for done, (name, short) in enumerate(short_names(plan).items(), 1):
            path = folder / "models" / f"{short}{SUFFIXES[format_name]}"
            if name not in models or not path.exists():
                with files.whole(path, format.COMPANION) as temporary, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    write_candidate(writer, plan, name, temporary, batch)
                sha256, size = file_digest(path, format.COMPANION)
                shape = input_shape(plan, name, batch)
                models[name] = Model(short, path.name, name, plan.roles[name], shape, sha256, size)
                journal.write(models[name].__dict__)
            if progress is not None:
                progress(done, len(plan.roles), short)
    manifest = Manifest(plan, settings, tuple(models[name] for name in plan.roles))
    manifest.save(folder)
    for file, text in recipe(manifest).items():
        files.write_text(folder / file, text)
    return manifest
