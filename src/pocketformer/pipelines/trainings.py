"""`train` and `evaluate` on their own: one network on a user's images."""

from pathlib import Path

from pocketformer import files
from pocketformer.architecture import NAMES, Architecture
from pocketformer.deploy.onnx import run_onnx
from pocketformer.errors import UserError
from pocketformer.models import EfficientFormerV2
from pocketformer.pipelines.images import open_images
from pocketformer.pipelines.networks import FinalTraining, as_test_result, test_result
from pocketformer.pipelines.supernets import load_supernet
from pocketformer.progress import say
from pocketformer.runs import Run
from pocketformer.training import checkpoint
from pocketformer.training.data import Data
from pocketformer.training.evaluation import evaluate
from pocketformer.training.recipe import Recipe
from pocketformer.training.tasks import load_teacher


def load_architecture(text: str) -> Architecture:
    """A published name, the path of an `architecture.json`, or a folder that holds one."""
    path = Path(text)
    if path.is_dir():
        path = path / "architecture.json"
    return Architecture.load(path) if path.suffix == ".json" else Architecture.named(text)


def train_network(
    architecture: str,
    source: str,
    recipe: Recipe,
    out: Path,
    *,
    init: str | None = None,
    teacher: str | None = None,
    seed: int = 0,
    bad_images: str = "refuse",
    workers: int = 2,
) -> dict:
    """Trains one network on fit + search and evaluates it on test; resumes in the same folder."""
    described = load_architecture(architecture)
    height, width = described.design.resolution
    share = 1.0 if max(height, width) <= 64 else 0.875
    data = open_images(source, (round(height / share), round(width / share)), seed, bad_images, workers)
    guide = load_teacher(teacher, len(data.classes)) if teacher else None
    settings = {
        "architecture": described.to_dict(),
        "data": source,
        "recipe": recipe.to_dict(),
        "init": init,
        "teacher": teacher,
        "seed": seed,
        "bad_images": bad_images,
    }
    with Run(out, "train", settings) as run:
        run.record(data_fingerprint=data.fingerprint, split_fingerprint=data.split_fingerprint)
        final = FinalTraining(data, recipe, seed, run.ledger, guide)
        model = _initialised(final, described, init)
        model = final.run(run.path, "network", model)
        _, test = test_result(model, data)
        parameters = sum(p.numel() for p in model.parameters())
        result = {"parameters": parameters, "test": test, "folder": str(run.path)}
        files.write_json(run.path / "results.json", {"command": "train", "seed": seed, **result})
    return result


def _initialised(final: FinalTraining, described: Architecture, init: str | None) -> EfficientFormerV2:
    if init is None:
        return final.fresh(described)
    folder = Path(init)
    config = files.read_json(
        (folder / "supernet" if (folder / "supernet").is_dir() else folder) / "config.json", "--init"
    )
    if "space" in config:
        supernet, config = load_supernet(folder)
        if config["num_classes"] != len(final.data.classes):
            raise UserError(f"--init {init} has {config['num_classes']} classes, the data {len(final.data.classes)}")
        return final.inherit(supernet, supernet.select(described))
    source, _ = checkpoint.load_model(folder)
    if source.architecture != described:
        raise UserError(f"--init {init} is of another architecture")
    model = final.fresh(described)
    state = model.state_dict()
    given = source.state_dict()
    same_head = source.num_classes == model.num_classes
    for name in state:
        if name.startswith("head"):
            origin = name if name in given else name.replace("head_dist", "head")
            if same_head:
                state[name] = given[origin]
        else:
            state[name] = given[name]
    if not same_head:
        say(f"note: the head of {init} ({source.num_classes} classes) was dropped; a new one has {model.num_classes}")
    model.load_state_dict(state)
    return model


def evaluate_checkpoint(
    path: str, architecture: str | None, source: str, runtime: str | None, seed: int, bad_images: str, workers: int
) -> dict:
    """Accuracy on the test split of a trained folder, in PyTorch, or of an exported file on its runtime."""
    target = Path(path)
    folder = target.parent.parent if target.suffix == ".onnx" and target.parent.name == "exported" else target
    folder = folder.parent if folder.suffix in (".onnx", ".safetensors") else folder
    model, config = checkpoint.load_model(folder, architecture)
    size = tuple(config["data"].get("stored_size", model.resolution))
    data: Data = open_images(source, size, seed, bad_images, workers)
    if list(data.classes) != config["classes"]:
        raise UserError(
            f"{path} knows the classes {', '.join(config['classes'][:4])}… ({len(config['classes'])}), the data has "
            f"{', '.join(data.classes[:4])}… ({len(data.classes)})"
        )
    if runtime is None and target.suffix != ".onnx":
        _, test = test_result(model, data)
        return {**test, "runtime": "torch"}
    if runtime not in (None, "onnxruntime"):
        raise UserError(f"no runtime {runtime!r} to evaluate with; known: onnxruntime")
    file = target if target.suffix == ".onnx" else folder / "exported" / "model.onnx"
    if not file.is_file():
        raise UserError(f"no exported file at {file}; run `export` first, or give its path as --checkpoint")
    outcome = evaluate(run_onnx(file), data.test, model.resolution, batch_size=1)
    return {**as_test_result(outcome), "runtime": "onnxruntime"}
