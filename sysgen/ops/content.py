"""Operations on an external memory by its content: addressing, writing and reading (Graves et al. 2014, 2016; Csordas
2023, chapter 2).

Legend of shapes: B batch, N cells, W width of a cell, R heads. State (memory and weights over its cells) is float32 or
float64, and everything is computed in its dtype. What a network emits (keys, masks, strengths, words, gates) has that
dtype too, or is bfloat16 or float16 beside a state of float32. Gradients come back in the dtype of their input;
autocast changes nothing. Derivatives of any order are exact up to rounding: the first ones are computed from the inputs
alone, which is all that is saved for backward, higher ones through the definitions in :mod:`sysgen.reference`. Results
are bitwise repeatable.
"""

from .. import reference
from . import _content_ops as ops
from ._memory_autograd import differentiable
from ._memory_checks import check_eps, memory_arguments


def content_address(memory, key, strength, mask=None, eps=1e-6):
    """Softmax over the cells of strength · cosine(memory ∘ mask, key ∘ mask) (Csordas 2023, Eq. 2.1 to 2.4).

    The cosine's denominator is ``|memory ∘ mask| · |key ∘ mask| + eps``; the gradient of a norm that is 0 is 0. The
    mask enters through its square, so that nothing has the size R · N · W.

    Args:
        memory: [B, N, W], state.
        key: [B, R, W], strength: [B, R], mask: [B, R, W] or None (ones): emitted.
        eps: at least the smallest normal number of the memory's dtype.

    Returns:
        Weights [B, R, N] in memory's dtype, whose sum over the cells is 1.

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name.
    """
    op = "content_address"
    emitted = {"key": (key, "BRW"), "strength": (strength, "BR"), "mask": (mask, "BRW?")}
    tensors = memory_arguments(op, {"memory": (memory, "BNW")}, emitted)
    check_eps(op, eps, memory.dtype)
    return _content_address(tensors, (float(eps),))


def ntm_address(memory, key, strength, gate, shift, sharpness, previous, eps=1e-6):
    """Addressing of the Neural Turing Machine (Graves et al. 2014, Eq. 5 to 9): content addressing, interpolation with
    the weights of the step before, circular shift, sharpening.

    ``content_address`` gives c; ``g · c + (1 − g) · previous`` is shifted: entry k of ``shift`` moves the focus by
    S − k cells; of the result, the power ``sharpness`` is taken and normalised. It is computed as a softmax of
    logarithms, which cannot underflow as a whole. Weights that are all 0 stay 0, and so do those that rounding made
    negative.

    Args:
        memory: [B, N, W], previous: [B, R, N]: state.
        key: [B, R, W]; strength, gate, sharpness: [B, R]; shift: [B, R, 2 S + 1]: emitted.
        eps: of :func:`content_address`. The paper has none; without it the gradient at an erased cell has no bound.

    Returns:
        Weights [B, R, N] in memory's dtype.

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name.
    """
    op = "ntm_address"
    state = {"memory": (memory, "BNW"), "previous": (previous, "BRN")}
    heads = {"strength": strength, "gate": gate, "sharpness": sharpness}
    emitted = {"key": (key, "BRW"), "shift": (shift, "BRK"), **{name: (t, "BR") for name, t in heads.items()}}
    memory, previous, key, shift, strength, gate, sharpness = memory_arguments(op, state, emitted)
    if shift.shape[2] % 2 == 0:
        raise ValueError(f"{op}: shift must have an odd number of entries [B, R, 2 S + 1], got {list(shift.shape)}")
    check_eps(op, eps, memory.dtype)
    return _ntm_address((memory, key, strength, gate, shift, sharpness, previous), (float(eps),))


def memory_write(memory, write_weights, erase, value, retention=None):
    """memory ∘ (1 − w eᵀ) + w vᵀ; with ``retention`` the old content is also multiplied by it, cell by cell, which is
    the thesis' de-allocation (Csordas 2023, chapter 2).

    Args:
        memory: [B, N, W], write_weights: [B, N], retention: [B, N] or None (ones): state.
        erase, value: [B, W], emitted.

    Returns:
        [B, N, W] in memory's dtype.

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name.
    """
    state = {"memory": (memory, "BNW"), "write_weights": (write_weights, "BN"), "retention": (retention, "BN?")}
    emitted = {"erase": (erase, "BW"), "value": (value, "BW")}
    memory, write_weights, retention, erase, value = memory_arguments("memory_write", state, emitted)
    return _memory_write((memory, write_weights, erase, value, retention))


def memory_read(memory, read_weights):
    """r M: the words of the cells, weighted.

    Args:
        memory: [B, N, W], read_weights: [B, R, N]: state.

    Returns:
        [B, R, W] in memory's dtype.

    Raises:
        TypeError, ValueError: an argument that does not fit, by its name.
    """
    state = {"memory": (memory, "BNW"), "read_weights": (read_weights, "BRN")}
    return _memory_read(memory_arguments("memory_read", state))


_content_address = differentiable(ops.content_address_fwd, ops.content_address_bwd, reference.content_address)
_ntm_address = differentiable(ops.ntm_address_fwd, ops.ntm_address_bwd, reference.ntm_address)
_memory_write = differentiable(ops.memory_write_fwd, ops.memory_write_bwd, reference.memory_write)
_memory_read = differentiable(ops.memory_read_fwd, ops.memory_read_bwd, reference.memory_read)
