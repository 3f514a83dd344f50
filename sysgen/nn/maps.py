"""Attention and gate maps of a model while it runs, for plots such as those of (Csordás 2023, Fig. 5.3 and D.1)."""

from contextlib import contextmanager

_collectors = []


@contextmanager
def collect_maps(model):
    """Collects what the layers in ``model`` look at while it runs within the ``with`` block.

    Yields a dict that fills up: name of the layer in ``model.named_modules()`` -> kind -> list of detached tensors, one
    for each time the layer was called (with :class:`SharedEncoder`, each step). Kinds: ``"attention"`` [B, H, L, S], by
    attention layers; ``"gate"`` [B, N, d_model] (or [B, N, 1]), by :class:`NDREncoderLayer`; ``"weight"`` [B, N, 1],
    with which :class:`ACTEncoder` adds a step to its output. Attention weights are computed densely, only here.

    Not for compiled modules: call the uncompiled model.

    Example:
        >>> with sysgen.nn.collect_maps(model) as maps:
        ...     model(tokens, lengths)
        >>> maps["encoder.layer.self_attn"]["attention"][3]  # of step 3
    """
    maps, names = {}, {id(module): name for name, module in model.named_modules()}
    entry = (names, maps)
    _collectors.append(entry)
    try:
        yield maps
    finally:
        _collectors[:] = [other for other in _collectors if other is not entry]  # == would compare tensors


def wanted():
    """Whether somebody collects; layers ask before they compute a map."""
    return bool(_collectors)


def record(module, kind, value):
    for names, maps in _collectors:
        if id(module) in names:
            maps.setdefault(names[id(module)], {}).setdefault(kind, []).append(value.detach())
