"""Checks of an operation against its definition in float64, with error bounds that follow from its arithmetic.

>>> sysgen.testing.check_op(
...     sysgen.ops.cvmm, sysgen.reference.cvmm,
...     {"x": x, "experts": experts, "weight": weight},
...     lengths={"output": (weight.shape[1],)},
... )
"""

import torch


def error_bound(value, magnitude, dtype, lengths, roundings=0, intermediate=None):
    """Largest error that a result may have against ``value``, its exact value; elementwise, float64.

    A result is a sum of products. With u the unit roundoff of the accumulator, u' that of the result's dtype, and M
    the sum of the absolute values of all products:

    - A sum of n terms has an error of at most n·u·M if all roundings conspire, and of λ·√n·u·M except with
      probability 2·exp(−λ²/2) if they do not, in whatever order it is taken (Higham & Mary, SIAM J. Sci. Comput. 41,
      2019). λ = 4. Where a term passes through several sums one after the other, their errors add.
    - At most four more operations touch a term (two factors, a bias, a conversion): 4·u·M.
    - An intermediate that is stored in a narrower dtype of unit roundoff u" is rounded once: u"·M. It must not be
      subnormal there, so inputs should stay away from zero: float16 has no full precision below 6e-5.
    - The result is rounded to its dtype: u'·(|value| + the errors so far), or half its smallest subnormal.
    - ``value`` itself was computed in float64, with the same bound in float64.

    Args:
        value: exact result, float64.
        magnitude: M, float64.
        dtype: dtype of the result. The accumulator is float64 for float64, else float32.
        lengths: lengths of the sums that a term passes through.
        roundings: number of intermediates that a term passes through.
        intermediate: dtype of these intermediates (default ``dtype``).
    """
    stored = torch.finfo(dtype)
    between = torch.finfo(intermediate or dtype)
    u = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    terms = 4 + sum(4 * n**0.5 for n in lengths)
    before = magnitude * (terms * (u + 2**-53) + roundings * between.eps / 2)
    return before + stored.eps / 2 * (value.abs() + before) + stored.smallest_normal * stored.eps / 2


def assert_within(actual, value, bound, what="result"):
    """Raises AssertionError where ``actual`` is further than ``bound`` from ``value``; NaN never passes.

    Returns:
        The largest error as a fraction of its bound.
    """
    if actual.shape != value.shape:
        raise AssertionError(f"{what}: shape {list(actual.shape)}, expected {list(value.shape)}")
    error = (actual.detach().to(value.device, torch.float64) - value).abs()
    wrong = ~(error <= bound)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are out of bounds; at {at} it is "
            f"{actual[at].item()!r}, expected {value[at].item()!r} ± {bound[at].item():.3g}"
        )
    return float((error / bound).max()) if error.numel() else 0.0


def check_op(
    op,
    reference,
    inputs,
    *,
    lengths,
    roundings=None,
    intermediate=None,
    as_seen=None,
    magnitude=None,
    direction=None,
    what="",
):
    """Compares the result of ``op`` and the gradients of all inputs that require one with ``reference`` in float64.

    Args:
        op, reference: functions of the same keyword arguments that return one tensor. ``reference`` must be linear in
            each differentiated input, or ``magnitude`` given.
        inputs: keyword arguments by name.
        lengths: for ``"output"`` and each differentiated input (its gradient), the lengths of the sums that a term
            passes through, as :func:`error_bound` takes them.
        roundings: by the same names, the number of intermediates that are rounded (default 0).
        intermediate: dtype to which they are rounded (default the output's).
        as_seen: inputs by name as the kernel sees them, where that differs (a float32 master weight, rounded).
        magnitude: function of the same arguments that bounds the sum of the absolute values of all terms when all
            inputs are their absolute values (default ``reference``).
        direction: gradient that arrives at the output (default random, away from zero).
        what: text for the error message.

    Returns:
        For each result by name, the largest error as a fraction of its bound.

    Raises:
        AssertionError: a result is out of its bound, or NaN.
    """
    differentiated = [n for n, t in inputs.items() if isinstance(t, torch.Tensor) and t.requires_grad]
    output = op(**inputs)
    if direction is None:
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(output.numel()))
        direction = (direction + 0.25 * direction.sign()).to(output)
    results = {"output": output}
    if differentiated:
        gradients = torch.autograd.grad(output, [inputs[n] for n in differentiated], direction)
        results.update(zip(differentiated, gradients))
    seen = {**inputs, **(as_seen or {})}
    values = _in_float64(reference, seen, differentiated, direction, lambda t: t)
    sizes = _in_float64(magnitude or reference, seen, differentiated, direction, torch.abs)
    worst = {}
    for name, actual in results.items():
        rounded = (roundings or {}).get(name, 0)
        bound = error_bound(
            values[name], sizes[name], actual.dtype, lengths[name], rounded, intermediate or output.dtype
        )
        worst[name] = assert_within(actual, values[name], bound, f"{what} {name}".strip())
    return worst


def _in_float64(function, inputs, differentiated, direction, change):
    def prepare(t):
        if not isinstance(t, torch.Tensor):
            return t
        return change(t.detach().double()).cpu() if t.is_floating_point() else t.cpu()

    inputs = {name: prepare(t) for name, t in inputs.items()}
    for name in differentiated:
        inputs[name].requires_grad_()
    output = function(**inputs)
    results = {"output": output.detach()}
    if differentiated:
        gradients = torch.autograd.grad(
            output, [inputs[n] for n in differentiated], prepare(direction), materialize_grads=True
        )
        results.update(zip(differentiated, gradients))
    return results


def check_gradients(function, inputs, second=True):
    """``gradcheck`` of a function of float64 tensors and, if ``second``, ``gradgradcheck``. Raises on a mismatch.

    The gradient that carries history may come from other code than the plain one, and ``gradgradcheck`` compares it
    with itself only; so the two are compared too.
    """
    torch.autograd.gradcheck(function, inputs)
    if second:
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        tracked = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
        directions = [torch.ones_like(t) for t in outputs]
        plain = torch.autograd.grad(outputs, tracked, directions, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(outputs, tracked, directions, create_graph=True), plain)
        torch.autograd.gradgradcheck(function, inputs)
