"""Second and higher derivatives of an operation through its definition in torch."""

import torch

from .._library import without_autocast


def second_order(function, inputs, incoming, directions, needed):
    """Derivatives of the sum of <direction, gradient>, where the gradients are those of the sum of
    <incoming, function(*inputs)> by the inputs.

    They have history where grad mode is on.

    Args:
        function: of the inputs; gives a tensor or a tuple of them.
        inputs: its arguments; None or an integer tensor is left alone.
        incoming: a tensor or None (zeros) for each output.
        directions: a tensor or None (zeros) for each input.
        needed: for each input and then each incoming tensor, whether its derivative is wanted.

    Returns:
        A tensor, or None (zeros, or not needed), for each input and then each incoming tensor.
    """
    create_graph, given = torch.is_grad_enabled(), (*inputs, *incoming)

    def leaf(t):
        if t is None or not t.is_floating_point():
            return t
        return t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()

    device = next(t for t in given if t is not None).device
    with torch.enable_grad(), without_autocast(device):
        leaves = [leaf(t) for t in given]
        outputs = function(*leaves[: len(inputs)])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        tracked = [(y, dy) for y, dy in zip(outputs, leaves[len(inputs) :]) if dy is not None]
        wanted = [(t, d) for t, d in zip(leaves, directions) if d is not None]
        if not wanted:
            return [None] * len(given)
        first = torch.autograd.grad(
            [y for y, _ in tracked],
            [t for t, _ in wanted],
            [dy for _, dy in tracked],
            create_graph=True,
            allow_unused=True,
        )
        paired = [(g, d) for g, (_, d) in zip(first, wanted) if g is not None and g.requires_grad]
        at = [i for i, (t, need) in enumerate(zip(leaves, needed)) if need and t is not None] if paired else []
        found = [None] * len(given)
        if at:
            derivatives = torch.autograd.grad(
                [g for g, _ in paired],
                [leaves[i] for i in at],
                [d for _, d in paired],
                create_graph=create_graph,
                allow_unused=True,
            )
            for i, derivative in zip(at, derivatives):
                found[i] = derivative
    return found
