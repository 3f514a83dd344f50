"""Figures of a run: accuracy curves, and the attention and gate maps of one sample."""

import math
from pathlib import Path

import torch

from .. import nn as layers
from . import log

OUTPUTS = {"bits": "bits", "words": "words"}  # what is wrong or right, by architecture, where a sequence has many
COLORS = {"train": "#999999", "iid": "#0072B2", "ood": "#D55E00"}
MOST_STEPS = 24  # that are drawn of an attention map
MOST_TOKENS = 60
STYLE = {"svg.hashsalt": "sysgen", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def save_figures(output, settings, model, data, device, note=print):
    """Writes all figures of a run into its folder as SVG and PNG; returns their file names.

    Without matplotlib nothing is drawn, and ``note`` says so.
    """
    try:
        import matplotlib
    except ImportError:
        note("no figures: they need matplotlib (pip install matplotlib)")
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    output = Path(output)
    written = []
    with plt.rc_context(STYLE):
        drawn = {"curves": _curves(plt, log.read(output / "log.jsonl"), settings)}
        drawn.update(_maps(plt, settings, model, data, device))
        for name, figure in drawn.items():
            written += save(figure, output / name)
            plt.close(figure)
    return written


def save(figure, path):
    """Writes ``path``.svg and .png; returns their names."""
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in ("svg", "png")]
    for file in paths:
        # no date inside: the same run gives the same file
        figure.savefig(file, dpi=120, metadata={"Date": None} if file.suffix == ".svg" else None)
    return [file.name for file in paths]


def _curves(plt, events, settings):
    """Accuracies and training loss against the step; where a sequence has many outputs, also how many are wrong."""
    points = [e for e in events if e["event"] == "evaluation"]
    steps = [e["step"] for e in points]
    kind = OUTPUTS.get(settings["architecture"])
    width = 3 if kind else 2
    figure, (accuracy, loss, *more) = plt.subplots(1, width, figsize=(4.5 * width, 3.2), layout="constrained")
    marker = "." if len(points) < 30 else None
    trained = [e for e in points if e["train"]]
    for ax, value in ((accuracy, "accuracy"), *((ax, "wrong") for ax in more)):
        values = [e["train"][value] for e in trained]
        ax.plot([e["step"] for e in trained], values, color=COLORS["train"], label="train", marker=marker)
        for name in points[0]["validation"] if points else ():
            values = [e["validation"][name][value] for e in points]
            ax.plot(steps, values, color=COLORS.get(name), label=f"validation, {name}", marker=marker)
        ax.legend(frameon=False)
    for ax in more:
        ax.set(xlabel="step", ylabel=f"wrong {kind} in a sequence", ylim=(0, None))
    accuracy.set(xlabel="step", ylabel="accuracy", ylim=(-0.02, 1.02), title=f"{settings['task']} {settings['model']}")
    loss.plot([e["step"] for e in trained], [e["train"]["loss"] for e in trained], color="black", marker=marker)
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    for ax in (accuracy, loss, *more):
        ax.grid(alpha=0.3)
    return figure


@torch.no_grad()
def sample_maps(model, data, device):
    """The maps of the longest sample that fits a page of the out-of-distribution test split.

    Returns:
        (tokens as text, maps as of :func:`sysgen.nn.collect_maps`, without the batch dimension)
    """
    dataset = data.group("test")["ood"]
    lengths = torch.as_tensor(dataset.lengths)
    index = int(torch.where(lengths <= MOST_TOKENS, lengths, -lengths).argmax())
    training = model.training
    model.eval()
    with layers.collect_maps(model) as maps:
        model(*dataset.batch([index]).to(device)[:2])
    model.train(training)
    tokens, _ = dataset[index]
    words = [dataset.vocabulary[int(t)] for t in tokens]
    found = {
        module: {kind: [t[0].float().cpu() for t in steps] for kind, steps in kinds.items()}
        for module, kinds in maps.items()
    }
    return words, found


def _maps(plt, settings, model, data, device):
    if settings["architecture"] != "encoder":
        return {}
    words, found = sample_maps(model, data, device)
    figures = {}
    for kinds in found.values():
        if "attention" in kinds:
            figures["attention"] = _attention(plt, words, kinds["attention"][:MOST_STEPS])
        if "gate" in kinds:
            figures["gate"] = _columns(plt, words, kinds["gate"], "mean gate of the column")
        if "weight" in kinds:
            figures["halting"] = _columns(plt, words, kinds["weight"], "weight of the step")
    return figures


def _labels(words, length):
    """The columns of the encoder: begin token, the words, end token."""
    return ["B", *words, "E"] if length == len(words) + 2 else [*words, *[""] * (length - len(words))]


def _attention(plt, words, steps):
    """One panel a step: where each column looks; of several heads the largest weight."""
    labels = _labels(words, steps[0].shape[-1])
    columns = min(len(steps), 4)
    rows = math.ceil(len(steps) / columns)
    side = max(2.0, 0.17 * len(labels))
    figure, grid = plt.subplots(
        rows, columns, figsize=(side * columns, (side + 0.3) * rows), squeeze=False, layout="constrained"
    )
    for ax in grid.flat[len(steps) :]:
        ax.axis("off")
    for step, (ax, weights) in enumerate(zip(grid.flat, steps), 1):
        ax.imshow(weights.amax(0).tolist(), cmap="Blues", vmin=0, vmax=1)
        ax.set_title(f"step {step}")
        _ticks(ax.set_xticks, labels, rotation=90)
        _ticks(ax.set_yticks, labels)
    return figure


def _columns(plt, words, steps, label):
    """Steps downwards, columns of the sequence to the right; of several channels the mean."""
    values = torch.stack([t.mean(-1) for t in steps])
    labels = _labels(words, values.shape[1])
    size = (max(3.0, 0.22 * len(labels) + 1.5), max(2.0, 0.2 * len(values) + 1.0))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.imshow(values.tolist(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    ax.set(ylabel="step")
    ax.set_yticks(range(len(values)), range(1, len(values) + 1), fontsize=6)
    _ticks(ax.set_xticks, labels, rotation=90)
    figure.colorbar(image, label=label)
    return figure


def _ticks(set_ticks, labels, **kwargs):
    set_ticks(range(len(labels)), labels, fontsize=6, **kwargs)
