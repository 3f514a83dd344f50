"""Optimisers and learning rates of the released runs."""

import torch


def make_optimizer(model, settings):
    """AdamW or Adam with torch's β and ε. Weight decay acts on every parameter, layer norms, biases and embeddings too.

    The fused kernels take AMP's scale and its "found an infinity" as tensors, so no step waits for the device.
    """
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings["optimizer"]]
    return kind(model.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"], fused=True)


def learning_rate(settings, step):
    """The rate of step 0, 1, …: constant after a linear warm-up, or Noam's (Vaswani et al. 2017, Sec. 5.3)."""
    warmup = settings["warmup"]
    if settings["schedule"] == "noam":
        return settings["lr"] * settings["d_model"] ** -0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)
    return settings["lr"] * min(1.0, (step + 1) / warmup) if warmup else settings["lr"]
