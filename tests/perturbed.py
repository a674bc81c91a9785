"""Networks moved away from where initialisation hides mistakes. Shared by the tests of models and supernet."""

import torch


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Replaces every weight and running statistic (zero biases, unit norms, layer scales of 1e-5, ...)."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.3 * noise.abs())
        elif name.endswith("gamma") or (name.endswith("weight") and tensor.ndim == 1):
            tensor.copy_(0.7 + 0.2 * noise)
        elif tensor.ndim > 1 and "bias" not in name:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif "talking_head" in name:  # added to each of N weights: more would drown the rest
            tensor.copy_(0.01 * noise)
        else:  # biases, bias tables, running means
            tensor.copy_(0.2 * noise)
    return model
