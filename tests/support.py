"""Inputs of the operation tests, and what the float64 comparison must know about each operation."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import sysgen
from sysgen import reference
from sysgen.nn._entropy import selection_negentropy
from sysgen.testing import check_op

HALF = (torch.bfloat16, torch.float16)

# (dtype of rows, dtype of weights)
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]


def dtype_id(dtypes):
    return "-".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))


def values(generator, shape, dtype=torch.float32, device="cpu", scale=1.0):
    """Random values of both signs, away from zero, so that no product of a few is subnormal in float16."""
    t = torch.randn(shape, generator=generator)
    return ((t + 0.25 * t.sign()) * scale).to(device, dtype)


def routes(generator, lead, k, num_experts, device="cpu", dropped=0.2):
    """Random expert ids with duplicates; a fraction is dropped."""
    shape = (*lead, k)
    if num_experts == 0:
        return torch.full(shape, -1, device=device)
    ids = torch.randint(0, num_experts, shape, generator=generator)
    ids[torch.rand(shape, generator=generator) < dropped] = -1
    return ids.to(device)


LAYOUTS = ("contiguous", "sliced", "transposed", "strided", "offset")


def place(t, layout):
    """The same values as a view of a larger buffer that is NaN (or a bad id) everywhere else."""
    if layout == "contiguous" or t.dim() == 0:
        return t.contiguous()
    poison = float("nan") if t.is_floating_point() else -(2**30)
    if layout == "sliced":  # every row stride odd, no row aligned
        buffer = t.new_full([n + 3 for n in t.shape], poison)
        view = buffer[tuple(slice(1, n + 1) for n in t.shape)]
    elif layout == "transposed":  # the outermost dimension is the contiguous one
        buffer = t.new_full([n + 3 for n in reversed(t.shape)], poison)
        view = buffer[tuple(slice(2, n + 2) for n in reversed(t.shape))].permute(*reversed(range(t.dim())))
    elif layout == "strided":  # no stride is 1
        buffer = t.new_full([2 * n + 1 for n in t.shape], poison)
        view = buffer[tuple(slice(1, 2 * n + 1, 2) for n in t.shape)]
    elif layout == "offset":  # contiguous, but only aligned to one element
        view = t.new_full([t.numel() + 2], poison)[1:-1].view(t.shape)
    else:
        raise ValueError(layout)
    view.copy_(t)
    return view


def longest(ids):
    """The largest number of routes of one expert."""
    ids = ids[ids >= 0]
    return int(ids.bincount().max()) if ids.numel() else 0


def check_cvmm(ops, inputs, what="", direction=None):
    """``ops.cvmm`` against the reference: output and the gradients of the inputs that require one."""
    x, ids, weight = inputs["x"], inputs["experts"], inputs["weight"]
    reduce, gate = inputs.get("reduce", False), inputs.get("gate")
    (_, d, h), k = weight.shape, ids.shape[-1]
    routed = x.dim() == ids.dim() + 1
    n = longest(ids)
    return check_op(
        ops.cvmm,
        reference.cvmm,
        inputs,
        lengths={
            "output": (d, k) if reduce else (d,),
            "x": (h,) if routed else (h, k),
            "weight": (n,),
            "gate": (d, h),
            "bias": (n,),
        },
        # Units that multiply half operands (tensor cores, vdpbf16ps) take the gate rounded into one of them.
        roundings=dict.fromkeys(("weight", "bias"), 1 if gate is not None and x.dtype in HALF else 0),
        as_seen={"weight": weight.detach().to(x.dtype)},
        direction=direction,
        what=what,
    )


def check_moe_ffn(ops, inputs, what=""):
    """``ops.moe_ffn`` against the reference: output and the gradients of the inputs that require one."""
    x, ids, w_up, w_down = inputs["x"], inputs["experts"], inputs["w_up"], inputs["w_down"]
    (_, d, hidden), d_out, k, n = w_up.shape, w_down.shape[2], ids.shape[-1], longest(ids)
    activation = inputs.get("activation", "relu")
    # The stored hidden rows and their gradient are rounded to x's dtype, and so are both sides of an activation that
    # the kernel does not fuse; gates are multiplied into one operand of a weight gradient (see check_cvmm).
    rounded = (0 if x.dtype == torch.float64 else 1) * (1 if activation in ("relu", "identity") else 2)

    def magnitude(**kwargs):
        # |act(z)| <= |z| and |act'| <= 1.13, |act''| <= 1 for all activations, so an error e of z is one of 1.13 e in
        # the hidden row and of e·|dh| in act'(z)·dh. With all inputs positive |z| is at most x·w_up + b_up.
        scale = 1
        if activation not in ("relu", "identity"):
            z = reference.cvmm(kwargs["x"], kwargs["experts"], kwargs["w_up"], bias=kwargs.get("b_up")).detach()
            scale = 1.13 * (2 + float(z.max()) if z.numel() else 2)
        return scale * reference.moe_ffn(**{**kwargs, "activation": "identity"})

    return check_op(
        ops.moe_ffn,
        lambda recompute=False, **kwargs: reference.moe_ffn(**kwargs),
        inputs,
        lengths={
            "output": (d, hidden, k),
            "x": (d, d_out, hidden, k),
            "w_up": (d, d_out, n),
            "b_up": (d, d_out, n),
            "w_down": (d, n),
            "gate": (d, hidden, d_out),
        },
        roundings={
            "output": rounded,
            "x": 2 * rounded,
            "w_up": 2 * rounded,
            "b_up": 2 * rounded,
            "w_down": rounded + 1,
            "gate": rounded,
        },
        as_seen={"w_up": w_up.detach().to(x.dtype), "w_down": w_down.detach().to(x.dtype)},
        magnitude=lambda recompute=False, **kwargs: magnitude(**kwargs),
        what=what,
    )


def regulariser(logits):
    """That of expert selection, of logits [..., E]."""
    log_sum = sysgen.ops.select_experts(logits, 1, return_log_sum=True)[2]
    return selection_negentropy(log_sum, logits.numel() // logits.shape[-1])


def python(*arguments, check=True, **environment):
    """Runs the interpreter with the sysgen under test, and not with the source folder that is the current directory."""
    package = Path(sysgen.__file__).resolve().parent.parent
    search = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": search, **environment},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=100,
        check=check,
    )
