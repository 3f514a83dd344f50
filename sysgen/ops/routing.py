"""Routing: one stable counting sort of (token, slot) routes by expert."""

import os
from typing import NamedTuple

import torch

from .._alloc import empty
from .._library import define_op, raw_stream
from .._load import core


class Route(NamedTuple):
    """Which expert serves which route, sorted. Made by :func:`route`; reusable by every operation of the family.

    With R = tokens · k routes, numbered ``token * k + slot``, and E experts:

    The contents are trusted: change them only if order, inverse and offsets still describe one sort. A Route made in
    ``torch.inference_mode`` cannot serve training; one made under ``torch.no_grad`` can.

    Attributes:
        order: int32 [R]. Routes by expert, stable; the dropped ones, in order, at the tail.
        inverse: int32 [..., k]. Place of each route in ``order``; −1 where the route is dropped.
        offsets: int32 [E + 1]. Expert e owns ``order[offsets[e]:offsets[e + 1]]``.
        num_experts: E.
        lead_shape: shape of the tokens, i.e. of ``experts`` without its last dimension.
        k: routes per token.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    offsets: torch.Tensor
    num_experts: int
    lead_shape: tuple
    k: int

    @property
    def num_tokens(self):
        n = 1
        for s in self.lead_shape:
            n = n * s
        return n


def route(experts, num_experts):
    """Sorts routes by expert: stable, without host synchronisation, in the same order on every device.

    The result serves the up projection, the down projection and both of their backwards (the thesis sorts once per
    call and has to count the experts separately, App. F.2.1; here offsets and inverse are by-products of the sort).

    Args:
        experts: int32 or int64 [..., k], on the CPU or on CUDA, any strides. Expert of each route; −1 drops it.
        num_experts: E ≥ 0. Ids lie in [0, E).

    Returns:
        :class:`Route`.

    Raises:
        TypeError: ``experts`` is not an int32 or int64 tensor, or ``num_experts`` not an integer.
        ValueError: ``experts`` has no last dimension, E is out of range, or an id lies outside [−1, E). On CUDA such
            an id drops its route, because looking would synchronise; with ``SYSGEN_DEBUG=1`` it is looked at.
    """
    if not isinstance(experts, torch.Tensor):
        raise TypeError(f"route: experts must be a torch.Tensor, got {type(experts).__name__}")
    if experts.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"route: experts must be int64 or int32, got {_name(experts.dtype)}")
    if experts.layout != torch.strided or experts.is_nested:
        raise TypeError(f"route: experts must be a dense tensor, got layout {_name(experts.layout)}")
    if experts.dim() == 0:
        raise ValueError("route: experts must have at least one dimension [..., k], got a scalar")
    if not isinstance(num_experts, (int, torch.SymInt)) or isinstance(num_experts, bool):
        raise TypeError(f"route: num_experts must be an int, got {type(num_experts).__name__}")
    if not 0 <= num_experts < 2**31 - 1:
        raise ValueError(f"route: num_experts must be in [0, 2^31 - 1), got {num_experts}")
    if experts.is_cuda and os.environ.get("SYSGEN_DEBUG") == "1":
        _check_ids(experts, num_experts)
    ids = experts.contiguous()
    if ids.dim() > 2:
        ids = ids.view(-1)  # any number of dimensions; a reshape alone could be a view with a stride
    order, inverse, offsets = _route_op(ids, num_experts)
    inverse = inverse.view(experts.shape) if ids.dim() != experts.dim() else inverse
    return Route(order, inverse, offsets, num_experts, tuple(experts.shape[:-1]), experts.shape[-1])


def _check_ids(experts, num_experts):
    bad = ((experts < -1) | (experts >= num_experts)).flatten().nonzero()
    if bad.numel():
        position = int(bad[0])
        raise ValueError(
            f"route: expert id {int(experts.flatten()[position])} at position {position} is out of range for "
            f"{num_experts} experts (checked because SYSGEN_DEBUG=1)"
        )


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _route_fwd(experts, num_experts):
    order = empty(experts, experts.numel(), torch.int32)
    inverse = empty(experts, experts.shape, torch.int32)
    offsets = empty(experts, num_experts + 1, torch.int32)
    scratch = None
    if experts.is_cuda or core.emulated:
        scratch = empty(experts, core.route_scratch_bytes(experts.numel(), num_experts), torch.uint8)
    core.route_fwd(
        experts,
        num_experts,
        order,
        inverse,
        offsets,
        scratch,
        torch.get_num_threads(),
        raw_stream(experts),
    )
    return order, inverse, offsets


def _route_fwd_fake(experts, num_experts):
    return (
        experts.new_empty(experts.numel(), dtype=torch.int32),
        experts.new_empty(experts.shape, dtype=torch.int32),
        experts.new_empty(num_experts + 1, dtype=torch.int32),
    )


_route_op = define_op(
    "route_fwd(Tensor experts, SymInt num_experts) -> (Tensor, Tensor, Tensor)", _route_fwd, _route_fwd_fake
)
