"""`correlate` on its own: supernet accuracy of subnets against their accuracy after training (V2 App. B, Fig. 5)."""

from dataclasses import dataclass, field
from pathlib import Path

from pocketformer import files
from pocketformer.errors import UserError
from pocketformer.pipelines.agreement import FEWEST, need_scipy, summarised
from pocketformer.pipelines.correlating import Stages, draw_subnets, found_subnets, trained_range
from pocketformer.pipelines.images import record_images, same_images, say_unreadable
from pocketformer.pipelines.settings import Budget, stored_size
from pocketformer.pipelines.supernets import images_of, load_supernet, opened, train_supernet, weights_of
from pocketformer.progress import say
from pocketformer.report import write_report
from pocketformer.runs import Run, check_folder, held, read_config, seconds_by_stage
from pocketformer.supernet import Supernet
from pocketformer.supernet.inheritance import inherit_norms
from pocketformer.supernet.sampling import LargestAlone
from pocketformer.training.balance import loss_weights
from pocketformer.training.compute import Compute
from pocketformer.training.data import Data
from pocketformer.training.recipe import Recipe
from pocketformer.training.targets import Labels


@dataclass(frozen=True)
class CorrelateSettings:
    """What `correlate` is asked for. `subnets` of each set; `parameters` of the second (None: the geometric mean of the
    smallest and the largest member's); `recipe` trains each from scratch; `alone`: a finished run that trained the
    largest network alone; `found`: folders of searches whose networks are trained too; `data`: where the
    supernet's images are by now (None: where they were); `seed` None: the supernet's."""

    supernet: str
    recipe: Recipe
    subnets: int = 20
    parameters: Budget | None = None
    alone: str | None = None
    found: tuple[str, ...] = ()
    data: str | None = None
    seed: int | None = None
    compute: Compute = field(default_factory=Compute)
    workers: int = 2

    def __post_init__(self) -> None:
        if self.subnets < FEWEST:
            raise UserError(f"--subnets {self.subnets}: a correlation needs at least {FEWEST}")


def correlate(asked: CorrelateSettings, out: Path) -> dict:
    """Draws two sets of subnets, scores them in the supernet and as slices of the largest network trained alone, trains
    each from scratch on fit, and says how well the scores tell the accuracies after training. All accuracies are on
    the search split. Resumes in the same folder."""
    need_scipy()
    supernet, config = _loaded(asked.supernet)
    space, classes = supernet.space, config["num_classes"]
    seed = config["seed"] if asked.seed is None else asked.seed
    smallest, largest = trained_range(space, classes)
    target = asked.parameters.of(largest) if asked.parameters else (smallest * largest) ** 0.5
    subnets = draw_subnets(space, classes, asked.subnets, target, seed) | found_subnets(space, asked.found)
    alone = _given(asked.alone, supernet, config) if asked.alone else None
    recipe = supernet_recipe(Path(asked.supernet)) if alone is None else None
    settings = {
        "supernet": asked.supernet,
        "subnets": asked.subnets,
        "parameters": target,
        "recipe": asked.recipe.to_dict(),
        "alone": asked.alone,
        "found": list(asked.found),
        "seed": seed,
        "compute": asked.compute.to_dict(),
    }
    places = {"alone": asked.alone, **{f"found[{i}]": folder for i, folder in enumerate(asked.found)}}
    inputs = held(supernet=weights_of(asked.supernet), **places)
    check_folder(out, "correlate", settings, inputs)
    data = images_of(asked.supernet, config, stored_size(space), asked.workers, asked.data)
    with Run(out, "correlate", settings, inputs) as run:
        record_images(run, data)
        run.record(space=space.to_dict())
        run.record(supernet=files.digest(weights_of(asked.supernet)))
        run.record(found={key: member.to_dict() for key, member in subnets.items() if key.startswith("found")})
        if alone is not None:
            run.record(alone=files.digest(weights_of(_inside(asked.alone))))
        if alone is None:
            alone = _train_alone(asked, run, supernet, config, recipe, data)
        inherit_norms(alone)
        stages, where = Stages(run, subnets, data), asked.compute.where
        scored = stages.scored(supernet.to(where), alone.to(where), config["seed"])
        trained = stages.trained(asked.recipe, seed, asked.compute, asked.workers)
        say_unreadable(data)
        spent = seconds_by_stage(run.path)
        rows = {
            key: {
                "selection": member.to_dict(),
                "parameters": member.architecture.parameters(classes, False),
                "accuracy": {**scored[key], **trained[key]},
                "seconds": spent.get(f"train {key}"),
            }
            for key, member in subnets.items()
        }
        result = {
            "command": "correlate",
            **{name: settings[name] for name in ("supernet", "parameters", "recipe", "seed")},
            "space": {"name": space.name, "parameters": [smallest, largest]},
            "split": "search",
            "images": len(data.search),
            "sets": summarised(rows),
            "seconds": spent,
        }
        files.write_json(run.path / "correlation.json", result)
        write_report([run.path], run.path / "correlation.html")
    return result


def supernet_recipe(folder: Path) -> Recipe:
    """By which a supernet was trained: of a folder of `supernet` or of `design`."""
    settings = read_config(folder)["settings"]
    return Recipe.from_dict(settings["recipe" if "recipe" in settings else "supernet"], str(folder / "config.yaml"))


def _loaded(folder: str | Path) -> tuple[Supernet, dict]:
    supernet, config = load_supernet(folder)
    if not isinstance(supernet, Supernet):
        raise UserError(f"{folder} is of EfficientFormers (V1): correlate is for supernets of EfficientFormerV2")
    return supernet, config


def _inside(folder: str) -> Path:
    inside = Path(folder) / "alone"
    return inside if inside.is_dir() else Path(folder)


def _given(folder: str, supernet: Supernet, config: dict) -> Supernet:
    """The largest network alone, of an earlier run of `correlate`."""
    net, about = _loaded(_inside(folder))
    if about.get("trained") != "alone":
        raise UserError(f"--alone {folder} did not train the largest network alone: give a run of correlate")
    if net.space != supernet.space or about["classes"] != config["classes"]:
        raise UserError(f"--alone {folder} is of another space or of other classes than the supernet")
    if not same_images(about.get("identity"), config.get("identity")):
        raise UserError(f"--alone {folder} learned from other images than the supernet, or from another split of them")
    return net


def _train_alone(
    asked: CorrelateSettings, run: Run, supernet: Supernet, config: dict, recipe: Recipe, data: Data
) -> Supernet:
    """The largest network trained alone on labels, for as long as the supernet was."""
    say("the largest network alone, for as long as the supernet:")
    how = (config.get(name) for name in ("seed", "bad_images", "group_by"))
    about = {**opened(asked.data or config["data"], *how), "trained": "alone"}
    return train_supernet(
        run.path / "alone",
        supernet.space,
        data,
        recipe,
        config["seed"],
        run.ledger,
        rule=LargestAlone(supernet.space),
        targets=Labels(recipe.label_smoothing, loss_weights(recipe.balance, data.fit, len(data.classes))),
        about=about,
        compute=asked.compute,
        workers=asked.workers,
    )
