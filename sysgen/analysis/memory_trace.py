"""Where a Differentiable Neural Computer wrote and read, drawn as in (Csordas 2023, Fig. 2.2b, 2.3a, 2.4)."""

import torch

WRITING = ("write_weights", "write_content", "allocation", "usage", "retention", "precedence", "write_mask", "gates")
READING = ("read_weights", "read_content", "forward", "backward", "read_mode", "read_mask")
GATES = ("write_gate", "allocation_gate", "free_gates")
MODES = ("backward", "content", "forward")


def plot_memory_trace(trace, sample=0, *, heads=None, panels=None, length=None, signals=None, title=None):
    """Draws one sample of what ``DNC(…)(input, return_trace=True)`` returned as its trace.

    Every panel is an image of values from 0 (dark) to 1 (bright), one row a step from the bottom to the top, one column
    a cell, word, gate or mode. The upper row of panels is about writing, and there is one below for every read head.
    Figure 2.2b of the thesis is ``panels=["read_mask"]``, Figure 2.4 ``panels=["forward", "read_mode"]``, Figure 2.3a
    ``panels=[], signals={"input": …, "target": …, "output": …}``.

    Args:
        trace: name -> [T, B, …], see :class:`sysgen.nn.dnc_trace.Trace`.
        sample: index in the batch.
        heads: indices of the read heads, None for all.
        panels: what to draw, in any order; None for all that the trace has. Of the writing ``write_weights``,
            ``write_content``, ``allocation``, ``usage``, ``retention``, ``precedence``, ``write_mask``, ``gates``
            (write, allocation and free gates); of the reading ``read_weights``, ``read_content``, ``forward``,
            ``backward``, ``read_mode``, ``read_mask``.
        length: number of steps to draw, None for all: rows after the end of a sample mean nothing.
        signals: title -> [T, D] of this sample, such as input, target and output, drawn above the panels with the time
            to the right, each over its own range of values.
        title: of the figure.

    Returns:
        A ``matplotlib.figure.Figure``, which pyplot does not know of: ``figure.savefig("trace.png")``. Its axes have
        labels: a panel its name, of a reading panel with the head (``"forward/0"``), a signal its title.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: an argument that does not fit, by its name.
    """
    steps = _check_trace(trace, sample)
    length = steps if length is None else length
    _check_index("length", length, 1, steps)
    reads = trace["read_weights"].shape[2]
    heads = range(reads) if heads is None else _listed("heads", heads)
    for head in heads:
        _check_index("heads", head, 0, reads - 1)
    if not isinstance(signals, (dict, type(None))):
        raise TypeError(f"plot_memory_trace: signals must be a dict or None, got {type(signals).__name__}")
    signals = {name: _check_signal(name, t, length) for name, t in (signals or {}).items()}
    panels = _check_panels(trace, panels)
    seen = {name: t[:length, sample].detach().float().cpu() for name, t in trace.items()}
    rows = [_writing(seen, panels), *(_reading(seen, panels, head, reads) for head in heads)]
    rows = [row for row in rows if row]
    if not rows and not signals:
        raise ValueError("plot_memory_trace: nothing to draw: panels, heads and signals leave nothing")
    return _draw(rows, signals, length, title)


def _writing(seen, panels):
    row = [(name, _title(name), seen[name], None) for name in WRITING[:-1] if name in panels]
    if "gates" in panels:
        gates = torch.cat([seen[name].reshape(len(seen[name]), -1) for name in GATES], 1)
        free = gates.shape[1] - 2
        labels = ["write", "allocation", *(["free"] if free == 1 else [f"free {i}" for i in range(free)])]
        row.append(("gates", "gates", gates, labels))
    return row


def _reading(seen, panels, head, reads):
    row = []
    for name in READING:
        if name in panels:
            title = _title(name) + (f", head {head}" if reads > 1 else "")
            row.append((f"{name}/{head}", title, seen[name][:, head], MODES if name == "read_mode" else None))
    return row


def _title(name):
    return name.replace("_", " ")


def _draw(rows, signals, length, title):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'plot_memory_trace: figures need matplotlib, which the extra "analysis" brings: pip install ".[analysis]"'
        ) from error
    columns = max(map(len, rows), default=0)
    height = min(max(0.05 * length, 1.6), 6.0)
    heights = [1.2 * len(signals), (height + 0.8) * len(rows)]
    width = max(1.9 * columns + 0.8, 6.0 if signals else 3.0)
    figure = Figure(figsize=(width, sum(heights) + 0.4), layout="constrained")
    shown = [i for i, part in enumerate((signals, rows)) if part]
    parts = figure.subfigures(len(shown), 1, height_ratios=[heights[i] for i in shown], squeeze=False)[:, 0]
    parts = dict(zip(shown, parts))
    if signals:
        _draw_signals(parts[0], signals)
    if rows:
        _draw_panels(parts[1], rows, columns)
    if title is not None:
        figure.suptitle(title)
    return figure


def _draw_signals(part, signals):
    grid = part.subplots(len(signals), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, t) in zip(grid, signals.items()):
        ax.set_label(name)
        ax.imshow(t.T.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
        ax.set(ylabel=name, yticks=[])
    grid[-1].set_xlabel("step")


def _draw_panels(part, rows, columns):
    grid = part.subplots(len(rows), columns, sharey=True, squeeze=False)
    for axes, row in zip(grid, rows):
        for ax in axes[len(row) :]:
            ax.remove()
        for ax, (label, title, values, labels) in zip(axes, row):
            ax.set_label(label)
            image = ax.imshow(
                values.numpy(), origin="lower", aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=1
            )
            ax.set_title(title, fontsize=9)
            if labels is None:
                ax.set_xlabel("word" if "mask" in label else "cell", fontsize=8)
            else:
                ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axes[0].set_ylabel("step")
    part.colorbar(image, ax=part.axes, shrink=0.8)


def _check_trace(trace, sample):
    if not isinstance(trace, dict):
        raise TypeError(f"plot_memory_trace: trace must be the trace of a DNC, a dict, got {type(trace).__name__}")
    missing = [name for name in ("write_weights", "read_weights") if name not in trace]
    if missing:
        raise ValueError(
            f"plot_memory_trace: trace must be what a DNC returns with return_trace=True after at least one step; it "
            f"has no {missing[0]!r}"
        )
    steps, batch = trace["write_weights"].shape[:2]
    _check_index("sample", sample, 0, batch - 1)
    return steps


def _check_index(name, value, least, most):
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"plot_memory_trace: {name} must be an int, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"plot_memory_trace: {name} must lie in [{least}, {most}], got {value}")


def _listed(name, values):
    try:
        return list(values)
    except TypeError:
        what = type(values).__name__
        raise TypeError(f"plot_memory_trace: {name} must be a list or None, got {what}") from None


def _check_signal(name, t, length):
    if not isinstance(t, torch.Tensor) or t.dim() != 2 or len(t) < length:
        given = list(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__
        raise ValueError(f"plot_memory_trace: signals[{name!r}] must have shape [{length}, D] or longer, got {given}")
    return t[:length].detach().float().cpu()


def _check_panels(trace, panels):
    has = [name for name in WRITING[:-1] + READING if name in trace]
    has += ["gates"] if all(name in trace for name in GATES) else []
    if panels is None:
        return has
    panels = [panels] if isinstance(panels, str) else _listed("panels", panels)
    for name in panels:
        if name not in has:
            known = "; the model has no masks" if name in WRITING + READING else ""
            raise ValueError(
                f"plot_memory_trace: panels must be some of {', '.join(map(repr, has))}, got {name!r}{known}"
            )
    return panels
