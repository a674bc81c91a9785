"""The networks: any `Architecture` as a static PyTorch module, registered with timm under `pocket_` names."""

from pocketformer.models import registry  # noqa: F401 (registers the models with timm)
from pocketformer.models.checkpoints import Loaded, load_checkpoint
from pocketformer.models.network import Network, create_model

__all__ = ["Loaded", "Network", "create_model", "load_checkpoint"]
