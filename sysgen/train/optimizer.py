"""Optimisers and learning rates of the released runs."""

import torch


def make_optimizer(model, settings):
    """AdamW or Adam with torch's β and ε, or RMSprop. Weight decay acts on every parameter, layer norms, biases and
    embeddings too, or with ``decay = "weights"`` on none of these. The gradient of each group is clipped by itself.

    The fused kernels take AMP's scale and its "found an infinity" as tensors, so no step waits for the device.
    """
    groups = _groups(model) if settings.get("decay") == "weights" else [{"params": list(model.parameters())}]
    shared = {"lr": settings["lr"], "weight_decay": settings["weight_decay"]}
    if settings["optimizer"] == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=settings["momentum"], eps=1e-10, **shared)  # ε as released
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings["optimizer"]]
    return kind(groups, fused=True, **shared)


def _groups(model):
    """As released for the DNC: weights, biases, embeddings; only the first decay."""
    named = list(model.named_parameters())
    biases = [p for n, p in named if n.rpartition(".")[2].startswith("bias")]
    embeddings = [p for n, p in named if "embedding" in n]
    special = {id(p) for p in biases + embeddings}
    groups = [{"params": [p for _, p in named if id(p) not in special]}]
    return groups + [{"params": p, "weight_decay": 0.0} for p in (biases, embeddings) if p]


def learning_rate(settings, step):
    """The rate of step 0, 1, …: constant after a linear warm-up, or Noam's (Vaswani et al. 2017, Sec. 5.3)."""
    warmup = settings["warmup"]
    if settings["schedule"] == "noam":
        return settings["lr"] * settings["d_model"] ** -0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)
    return settings["lr"] * min(1.0, (step + 1) / warmup) if warmup else settings["lr"]
