"""The supernet: elastic layers with shared weights, and the rules by which its subnets are sampled."""

from pocketformer.supernet.supernet import Supernet

__all__ = ["Supernet"]
