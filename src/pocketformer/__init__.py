"""Images, a device and a budget in; a searched, trained, exported, checked and measured vision transformer out.

Importing this package is cheap: names are loaded when first used, and only those that need torch import it.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Architecture": "architecture",
    "SearchSpace": "architecture",
    "Selection": "architecture",
    "LatencyTable": "devices",
    "UserError": "errors",
    "WorkError": "errors",
    "create_model": "models",
    "eager": "deploy",
    "export": "deploy",
    "fuse": "deploy",
    "load_checkpoint": "models",
    "mes": "search",
    "MetaPathSupernet": "supernet",
    "Supernet": "supernet",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pocketformer' has no attribute {name!r}")
    return getattr(import_module(f"pocketformer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
