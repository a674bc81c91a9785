"""Checkpoints."""


def export_checkpoint(model, layout):
    raise NotImplementedError
