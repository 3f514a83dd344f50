"""Several runs in one figure."""

from pathlib import Path

from . import log
from .figures import STYLE, save

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def plot_runs(runs, path, value="loss", split="train", title=None):
    """Curves over the training steps of several models, each the mean over its runs with a band from the least to the
    greatest, as (Csordas 2023, Fig. 2.2 and 2.3); written as ``path``.svg and .png. Needs matplotlib.

    Args:
        runs: dict from the name of a model to the folder of a run, or a list of them (seeds).
        path: where to write, without suffix.
        value: ``"loss"``, ``"accuracy"`` or ``"wrong"`` (outputs in a sequence). A point of the training loss is the
            mean since the point before.
        split: ``"train"``, or a validation split (``"iid"``, ``"ood"``).
        title: of the figure.

    Raises:
        ValueError: a run without a log, or runs of a model that have no steps in common.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if len(runs) > len(COLORS):
        raise ValueError(f"plot_runs draws at most {len(COLORS)} models, got {len(runs)}")
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
        for color, (name, folders) in zip(COLORS, runs.items()):
            steps, values = _common([folders] if isinstance(folders, (str, Path)) else folders, value, split, name)
            count = len(values[0])
            label = name if count == 1 else f"{name} ({count} runs)"
            ax.plot(steps, [sum(v) / count for v in values], color=color, label=label)
            ax.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, lw=0)
        what = f"{'training' if split == 'train' else split} {value}"
        ax.set(xlabel="step", ylabel=what, title=title, ylim=(0, None), xlim=(0, None))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        save(figure, Path(path))
        plt.close(figure)


def curve(folder, value="loss", split="train"):
    """``value`` by step of the run in ``folder``, as of :func:`plot_runs`."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        raise ValueError(f"{folder} holds no log of a run")
    points = (
        (e["step"], e["train"] if split == "train" else e["validation"].get(split))
        for e in log.read(path)
        if e["event"] == "evaluation"
    )
    return {step: scores[value] for step, scores in points if scores}


def _common(folders, value, split, name):
    """The steps that all runs have, and the values of all runs at each."""
    curves = [curve(folder, value, split) for folder in folders]
    steps = sorted(set.intersection(*(set(c) for c in curves))) if curves else []
    if not steps:
        raise ValueError(f"the runs of {name!r} have no steps in common at which {split} {value} is known")
    return steps, [[c[step] for c in curves] for step in steps]
