"""What the Python kernels of several families need to call the core."""

import torch

from .._alloc import empty
from .._library import define_op, raw_stream
from .._load import core


def run(name, tensors, like, options=()):
    """``core.<name>`` where ``like`` is; on CUDA with the scratch that ``core.<name>_scratch_bytes`` asks for."""
    scratch, stream = None, 0
    if like.is_cuda or core.emulated:
        size = getattr(core, f"{name}_scratch_bytes")(*tensors, *options)
        scratch, stream = empty(like, size, torch.uint8), raw_stream(like)
    getattr(core, name)(*tensors, scratch, *options, torch.get_num_threads(), stream)


def dense(t):
    return None if t is None else t.contiguous()


def weights_of_backward(hidden, reads, interface):
    """What a recurrence's backward takes: on CUDA it reads transposes, on the CPU the weights as they are."""
    if hidden.is_cuda or core.emulated:
        return hidden.t().contiguous(), reads.t().contiguous(), interface.contiguous(), interface.t().contiguous()
    return hidden.contiguous(), reads.contiguous(), interface.contiguous(), None


def new_fake(like, shape, dtype=None, strides=None):
    """:func:`._alloc.empty` for fake tensors."""
    dtype = like.dtype if dtype is None else dtype
    return (
        like.new_empty(shape, dtype=dtype) if strides is None else like.new_empty_strided(shape, strides, dtype=dtype)
    )


def define_core_op(name, arguments, options, results, shapes):
    """``sysgen::<name>(arguments, options) -> results``, by the core's function of that name.

    Args:
        arguments: names of tensors, with a ``?`` behind if they may be None. The first one decides dtype and device.
        options: numbers, in the words of a schema (``"float eps"``).
        results: names.
        shapes: function of the tensors; gives a shape for each result, or None for one that does not exist, which
            becomes a tensor of shape [0].
    """

    def outputs(new, given):
        wanted = shapes(*given[: len(arguments)])
        made = tuple(new(given[0], (0,) if shape is None else shape) for shape in wanted)
        return made if len(made) > 1 else made[0], [None if shape is None else t for t, shape in zip(made, wanted)]

    def kernel(*given):
        made, wanted = outputs(empty, given)
        tensors = [dense(t) for t in given[: len(arguments)]]
        run(name, (*tensors, *wanted), tensors[0], given[len(arguments) :])
        return made

    def fake(*given):
        return outputs(new_fake, given)[0]

    declared = [f"Tensor{'?' if a.endswith('?') else ''} {a.rstrip('?')}" for a in arguments]
    returned = ", ".join(f"Tensor {r}" for r in results)
    return define_op(f"{name}({', '.join([*declared, *options])}) -> ({returned})", kernel, fake)
