"""The networks: any `Architecture` as a static PyTorch module, registered with timm under `pocket_` names."""

from pocketformer.models.network import Network, create_model

__all__ = ["Network", "create_model"]
