"""What the user of an exported file must know, from what a trained folder says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketformer.deploy.facts import Facts, architecture_name
from pocketformer.models import Network
from pocketformer.pipelines.trained import run_above
from pocketformer.training.batches import normalisation_of
from pocketformer.training.pixels import Normalisation


def classifier_facts(
    model: Network, config: Mapping[str, Any], learned: Mapping[str, Any], licence: str | None = None
) -> Facts:
    """`config`: what `load_trained` gave beside the network; `learned`: what `data_facts` gives. Without `licence`, the
    one that it states, if any."""
    stored = config["data"].get("stored_size", model.resolution)
    stated = (config.get("pretrained_cfg") or {}).get("license")
    return Facts(
        task="classification",
        architecture=architecture_name(model.architecture),
        size=tuple(model.resolution),
        classes=None if config["classes"] is None else tuple(config["classes"]),
        stored_size=tuple(stored),
        **channels(normalisation_of(model), model.in_chans),
        licence=licence or (stated if isinstance(stated, str) else None),
        **learned,
        depth=config["data"].get("depth"),
    )


def data_fingerprint(weights: str | Path) -> str | None:
    """Of the images that the run trained on in which the weights lie; None: of no run of ours."""
    config = run_above(weights)
    found = None if config is None else config["facts"].get("data_fingerprint")
    return found if isinstance(found, str) else None


def data_facts(weights: str | Path) -> dict[str, Any]:
    """`fingerprint`, `seed` and `group_by`: which images the run learned from in which the weights lie, as far as they
    lie in one of ours."""
    settings = (run_above(weights) or {}).get("settings", {})
    return {
        "fingerprint": data_fingerprint(weights),
        **{name: settings[name] for name in ("seed", "group_by") if name in settings},
    }


def channels(normalisation: Normalisation, channels: int) -> dict[str, tuple[float, ...]]:
    """Mean and std, one a channel: timm's defaults are of three whatever the network takes."""
    values = normalisation._asdict()
    return {n: tuple(v) if len(v) == channels else (sum(v) / len(v),) * channels for n, v in values.items()}
