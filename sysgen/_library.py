"""Registration of operations with torch, and what their Python kernels need to call the core."""

import torch

_LIB = torch.library.Library("sysgen", "DEF")


def define_op(schema, kernel, fake):
    """Defines ``sysgen::<schema>`` with one Python kernel for CPU and CUDA and a fake kernel for tracing.

    The op itself has no derivative: the public functions wrap it in an ``autograd.Function``. Called directly with a
    tensor that requires a gradient it therefore refuses, instead of silently returning a result without history.
    """
    name = schema.split("(", 1)[0]
    _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIB.impl(name, kernel, "CPU")
    _LIB.impl(name, kernel, "CUDA")
    op = getattr(torch.ops.sysgen, name).default

    def refuse_gradient(*args):
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            raise RuntimeError(
                f"torch.ops.sysgen.{name} has no derivative of its own; call the public function in sysgen.ops, "
                "or detach its arguments"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _LIB.impl(name, refuse_gradient, "Autograd")
    torch.library.register_fake(f"sysgen::{name}", fake, lib=_LIB)
    return op


def raw_stream(tensor):
    """The current CUDA stream of the tensor's device as an integer, 0 on the CPU."""
    return torch._C._cuda_getCurrentRawStream(tensor.device.index) if tensor.is_cuda else 0


def autocast_dtype(tensor):
    """The dtype that autocast asks for on the tensor's device, or None."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
