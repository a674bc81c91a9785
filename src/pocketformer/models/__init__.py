"""The networks: any `Architecture` as a static PyTorch module."""

from pocketformer.models.efficientformerv2 import EfficientFormerV2, create_model

__all__ = ["EfficientFormerV2", "create_model"]
