"""The networks under timm's names: `pocket_<published name>` for each, `pocket_custom` for any architecture.

Importing this module registers them (contract 4). The prefix keeps timm's own models of the bare names in place.
"""

import contextlib
import math
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

from pocketformer.architecture import Architecture
from pocketformer.architecture.design import pair
from pocketformer.architecture.published import NAMES
from pocketformer.errors import UserError
from pocketformer.models import conversion
from pocketformer.models.network import Network

CUSTOM = "pocket_custom"
_DROP_PATH = {"efficientformerv2_s2": 0.02, "efficientformerv2_l": 0.1}  # V2 Table 5, as timm's defaults
_ALIASES = {"distillation": "distilled", "layer_scale_init_value": "layer_scale"}  # of timm's EfficientFormers


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "classifier": ("head", "head_dist"),
        "first_conv": "stem.conv1.conv",
        **overrides,
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in (*(f"pocket_{n}" for n in NAMES), CUSTOM)})


@register_model
def pocket_custom(pretrained: bool = False, architecture: Any = None, **kwargs: Any) -> nn.Module:
    """Any architecture: an `Architecture`, a published name, `Architecture.to_dict()`, or the path of its JSON."""
    if architecture is None:
        raise UserError(f"{CUSTOM} needs architecture=, for example an Architecture or the path of architecture.json")
    return _build(CUSTOM, Architecture.find(architecture), pretrained, **kwargs)


def _register(published: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        kwargs = {"drop_path_rate": _DROP_PATH.get(published, 0.0), **kwargs}
        return _build(entrypoint.__name__, Architecture.named(published), pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = f"pocket_{published}"
    entrypoint.__doc__ = f"`{published}` as published, freshly initialised."
    globals()[entrypoint.__name__] = register_model(entrypoint)


for _name in NAMES:
    _register(_name)


def timm_config(model: Network, classes: tuple[str, ...] = (), crop_pct: float = 1.0) -> dict[str, Any]:
    """What a `config.json` says to `timm.create_model("local-dir:FOLDER", pretrained=True)`; JSON-able."""
    arguments = {
        "architecture": model.architecture.to_dict(),
        "img_size": list(model.resolution),
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
        "distilled": model.distilled,
        "global_pool": model.global_pool,
    }
    if model.dynamic:  # absent otherwise, so that features_only may choose
        arguments["dynamic_img_size"] = True
    cfg = _cfg(
        input_size=[model.in_chans, *model.resolution],
        fixed_input_size=not model.dynamic,
        num_classes=model.num_classes,
        mean=list(model.pretrained_cfg["mean"]),
        std=list(model.pretrained_cfg["std"]),
        crop_pct=math.floor(1e6 * crop_pct) / 1e6,  # timm divides by it and rounds down: never below the stored size
        first_conv=model._traits["first_conv"],
    )
    if classes:
        cfg["label_names"] = list(classes)
    return {
        "architecture": CUSTOM,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": cfg,
    }


def _build(name: str, architecture: Architecture, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm's builder around `Network`: features, their wrapper, weights of a folder or file."""
    for theirs, ours in _ALIASES.items():
        if theirs in kwargs:
            if ours in kwargs:
                raise UserError(f"{theirs} and {ours} are the same argument: give one of them")
            kwargs[ours] = kwargs.pop(theirs)
    if kwargs.get("features_only"):
        kwargs.setdefault("dynamic_img_size", True)  # detection and segmentation change it from batch to batch
    if not kwargs.get("pretrained_cfg"):
        overlay = {"input_size": (3, *architecture.design.resolution)}
        kwargs["pretrained_cfg_overlay"] = {**overlay, **(kwargs.get("pretrained_cfg_overlay") or {})}
    if pretrained:
        cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        if not (cfg.has_weights or cfg.state_dict):
            raise UserError(
                f"{name} has no weights to download: build it without pretrained=True, then call "
                "pocketformer.load_checkpoint(model, path)"
            )
    made: list[Network] = []
    stages = tuple(range(len(architecture.stages)))
    model = build_model_with_cfg(
        lambda **given: made.append(_network(**given)) or made[0],
        name,
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": stages, "flatten_sequential": True},
        pretrained_filter_fn=_filter,
        architecture=architecture,
        **kwargs,
    )
    if model is not made[0]:  # of features: timm hands the tensors of `checkpoint_path` to its wrapper
        model.register_load_state_dict_pre_hook(conversion.Wrapped(made[0], model))
    return model


def _filter(state: dict[str, torch.Tensor], model: Network) -> dict[str, torch.Tensor]:
    """A file's tensors as the model's, but of the file's classes and channels, to which timm sees itself."""
    cfg = model.pretrained_cfg
    resolution = model.pretrained_model_args.get("img_size")
    return conversion.converted(state, model, cfg["num_classes"], cfg["input_size"][0], resolution and pair(resolution))


def _network(
    architecture: Architecture,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    global_pool: str = "avg",
    distilled: bool = True,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale: float = 1e-5,
    dynamic_img_size: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **unknown: Any,
) -> Network:
    """`Network` by timm's names for its arguments."""
    if unknown:
        known = ", ".join(n for n in _network.__annotations__ if n not in ("architecture", "unknown", "return"))
        raise UserError(f"unknown argument {next(iter(unknown))!r} of a pocket_ model; known: {known}")
    with contextlib.nullcontext() if device is None else torch.device(device):
        model = Network(
            architecture,
            num_classes=num_classes,
            resolution=img_size,
            distilled=distilled,
            in_chans=in_chans,
            drop_path=drop_path_rate,
            layer_scale=layer_scale,
            dropout=drop_rate,
            dynamic=dynamic_img_size,
            global_pool=global_pool,
        )
    return model.to(dtype=dtype)
