"""Definition of :func:`sysgen.ops.route`: a stable sort."""

import torch

from ..ops.routing import Route


def route(experts, num_experts):
    """experts int32/int64 [..., k] with −1 for a dropped route -> :class:`sysgen.ops.Route`.

    An id outside [−1, num_experts) is a ValueError on the CPU and a dropped route elsewhere.
    """
    ids = experts.reshape(-1).long()
    kept = (ids >= 0) & (ids < num_experts)
    if ids.device.type == "cpu" and not (kept | (ids == -1)).all():
        raise ValueError(f"route: experts must lie in [-1, {num_experts}), got {ids.min()} to {ids.max()}")
    keys = torch.where(kept, ids, num_experts)  # dropped routes sort behind the last expert
    order = torch.argsort(keys, stable=True)
    offsets = torch.searchsorted(keys[order], torch.arange(num_experts + 1, device=keys.device))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    inverse = torch.where(kept, place, -1).view(experts.shape)
    return Route(order.int(), inverse.int(), offsets.int(), num_experts, tuple(experts.shape[:-1]), experts.shape[-1])
