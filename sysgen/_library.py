"""Registration of operations with torch, and what their Python kernels need to call the core."""

from contextlib import nullcontext

import torch
from torch.autograd import forward_ad

_LIB = torch.library.Library("sysgen", "DEF")


def define_op(schema, kernel, fake):
    """Defines ``sysgen::<schema>`` with one Python kernel for CPU and CUDA and a fake kernel for tracing.

    The op itself has no derivative: the public functions wrap it in an ``autograd.Function``. Called directly with a
    tensor that requires a gradient, or with a tangent of forward mode, it therefore refuses, instead of silently
    returning a result without history.
    Returns the op.
    """
    name = schema.split("(", 1)[0]

    def refuse_gradient(*args):
        if torch.is_grad_enabled():
            for i in tensors:
                if args[i] is not None and args[i].requires_grad:
                    raise RuntimeError(
                        f"torch.ops.sysgen.{name} has no derivative of its own; call the public function in "
                        "sysgen.ops, detach its arguments, or run under torch.no_grad() (an exported program)"
                    )
        if forward_ad._current_level >= 0:
            for i in tensors:
                if args[i] is not None and forward_ad.unpack_dual(args[i]).tangent is not None:
                    raise RuntimeError(f"sysgen.{name} has no forward-mode derivative; use reverse mode (backward)")
        return kernel(*args)

    _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.sysgen, name).default
    tensors = [i for i, a in enumerate(op._schema.arguments) if "Tensor" in str(a.type)]
    _LIB.impl(name, refuse_gradient, "CPU")
    _LIB.impl(name, refuse_gradient, "CUDA")
    torch.library.register_fake(f"sysgen::{name}", fake, lib=_LIB)
    return op


def raw_stream(tensor):
    """The current CUDA stream of the tensor's device as an integer, 0 on the CPU."""
    return torch._C._cuda_getCurrentRawStream(tensor.device.index) if tensor.is_cuda else 0


def autocast_dtype(tensor):
    """The dtype that autocast asks for on the tensor's device, or None."""
    device = "cuda" if tensor.is_cuda else "cpu"
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def without_autocast(device):
    """A context in which products keep the dtype of their tensors. A meta tensor's device has no autocast to switch
    off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
