"""Dynamic memory allocation and temporal links of the Differentiable Neural Computer (Graves et al. 2016; Csordás 2023,
chapter 2 and App. A), each operation by itself.

State (usage, links, precedence, read and write weights) is float32 or float64, and everything is computed in its dtype,
also under autocast: keep it in float32 beside a network in half precision. Gates and sharpness may be bfloat16 or
float16; their gradients come back in their own dtype. Results are bitwise repeatable. Derivatives are exact up to
rounding: the first by fused kernels, which save no further N², the second and higher ones through the definition.
"""

from . import _links_autograd as autograd
from ._geometric_attention_checks import check_flag
from ._memory_checks import check_eps, memory_arguments


def retention(read_weights, free_gate):
    """What the free gates leave of every cell: ``ψ = Π over the heads of (1 − free_gate · read_weights)`` (Csordás
    2023, App. A; Graves et al. 2016, Methods).

    Args:
        read_weights: [B, R, N], of the step before; float32 or float64.
        free_gate: [B, R], in [0, 1]; in the dtype of read_weights, or bfloat16 or float16.

    Returns:
        [B, N].

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: a shape, device or number that does not fit.
    """
    arguments = memory_arguments("retention", {"read_weights": (read_weights, "BRN")}, {"free_gate": (free_gate, "BR")})
    return autograd.retention(arguments)


def usage_update(usage, write_weights, retention, detach_write=True):
    """Cells are used where they were written, and free where they were released: ``u ← (u + w − u · w) · ψ`` (Csordás
    2023, App. A; Graves et al. 2016, Methods).

    Args:
        usage: [B, N], float32 or float64.
        write_weights: [B, N], of the step before.
        retention: [B, N], of :func:`retention`.
        detach_write: the write weights get no gradient, as in the released code.

    Returns:
        [B, N].

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: a shape, device or number that does not fit.
    """
    op = "usage_update"
    check_flag(op, "detach_write", detach_write)
    usage, write_weights, retention = memory_arguments(
        op, {"usage": (usage, "BN"), "write_weights": (write_weights, "BN"), "retention": (retention, "BN")}
    )
    return autograd.usage_update((usage, write_weights.detach() if detach_write else write_weights, retention))


def allocation(usage, eps=1e-6):
    """Write weights that prefer the cells used least: ``a = (1 − ũ) · product of ũ over the cells used less``, with
    ``ũ = eps + (1 − eps) · usage`` (Csordás 2023, App. A; Graves et al. 2016, Methods).

    Of cells used alike the one with the lower index comes first, on every device.

    Args:
        usage: [B, N], float32 or float64; in [0, 1]. A NaN counts as used most.
        eps: at least the smallest normal number. Keeps cells apart that are not used at all.

    Returns:
        [B, N].

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: a shape, device or number that does not fit.
        NotImplementedError: more than 4096 cells on CUDA.
    """
    (usage,) = memory_arguments("allocation", {"usage": (usage, "BN")})
    check_eps("allocation", eps, usage.dtype)
    return autograd.allocation((usage,), (eps,))


def link_update(link, precedence, write_weights):
    """Links to the cells that are written from those written before: ``L[i, j] ← (1 − w[i] − w[j]) L[i, j] + w[i]
    p[j]``, 0 for i = j, and ``p ← (1 − Σ w) p + w`` (Csordás 2023, App. A; Graves et al. 2016, Methods).

    Args:
        link: [B, N, N], float32 or float64; what its diagonal holds does not matter.
        precedence: [B, N], how much each cell was the last one written.
        write_weights: [B, N].

    Returns:
        (link, precedence) after the write, [B, N, N] and [B, N].

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: a shape, device or number that does not fit.
    """
    return autograd.link_update(
        memory_arguments(
            "link_update",
            {"link": (link, "BNN"), "precedence": (precedence, "BN"), "write_weights": (write_weights, "BN")},
        )
    )


def link_read(link, read_weights, sharp_forward=None, sharp_backward=None, eps=1e-6):
    """The cells written after and before those that were read: forward ``L r`` and backward ``Lᵀ r`` for each head,
    with a sharpness s sharpened to ``softmax(s · log(d + eps))``, which is ``(d + eps)ˢ`` normalised (Csordás 2023,
    Eq. A.10).

    All heads and both directions share one pass over the links (on CUDA eight heads at a time, four in the backward
    pass). A projection d below 0, which rounding may leave, counts as 0 when it is sharpened.

    Args:
        link: [B, N, N], float32 or float64.
        read_weights: [B, R, N], of the step before.
        sharp_forward, sharp_backward: [B, R] or None; in the dtype of link, or bfloat16 or float16.
        eps: at least the smallest normal number.

    Returns:
        (forward, backward), each [B, R, N].

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: a shape, device or number that does not fit.
    """
    op = "link_read"
    arguments = memory_arguments(
        op,
        {"link": (link, "BNN"), "read_weights": (read_weights, "BRN")},
        {"sharp_forward": (sharp_forward, "BR?"), "sharp_backward": (sharp_backward, "BR?")},
    )
    check_eps(op, eps, link.dtype)
    return autograd.link_read(*arguments, eps)
