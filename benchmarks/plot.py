"""Curves of the benchmarks as SVG and PNG: ``python benchmarks/plot.py results/cpu/<date>.json``."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from report import curves, machine

# Okabe and Ito's palette: told apart by colour-blind readers too.
STYLES = {
    "sysgen": {"color": "#D55E00", "marker": "o", "linewidth": 2.6, "zorder": 5},
    "dense MLP": {"color": "#000000", "marker": "s"},
    "dense-equivalent": {"color": "#999999", "marker": None, "linestyle": "--"},
    "loop over experts": {"color": "#0072B2", "marker": "v"},
    "sorted loop": {"color": "#56B4E9", "marker": "^"},
    "sort + grouped_mm": {"color": "#009E73", "marker": "D"},
    "numba prange": {"color": "#CC79A7", "marker": "P"},
    "ScatterMoE": {"color": "#F0E442", "marker": "X"},
    "dense eager": {"color": "#0072B2", "marker": "v"},
    "released formula": {"color": "#000000", "marker": "s"},
    "torch.compile": {"color": "#009E73", "marker": "D"},
    "softmax (SDPA)": {"color": "#999999", "marker": None, "linestyle": "--"},
}
LABELS = {
    "sysgen": "sysgen.nn.SigmaMoE",
    "softmax (SDPA)": "torch's softmax attention (another function, same shape)",
    "dense MLP": "dense MLP, equal parameters",
    "dense-equivalent": "dense MLP, equal FLOPs (the limit)",
}
OPS = {**LABELS, "sysgen": "sysgen.ops.geometric_attention"}
NAMES = {label: name for labels in (LABELS, OPS) for name, label in labels.items()}
AXES = {
    "num_experts": "number of experts N_E",
    "expert_size": "width of an expert G",
    "d_model": "width of the model d_model",
    "positions": "positions N",
}
LEGEND = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.03), "frameon": False, "fontsize": 9}
RC = {
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
RC |= {"svg.hashsalt": "sysgen", "svg.fonttype": "none", "lines.linewidth": 1.4, "lines.markersize": 5}


def plot_all(content, path):
    """Writes all figures that the content of a results file gives. Returns their paths."""
    found = {}
    for points in curves(content["records"]):
        one = next(iter(next(iter(points.values())).values()))
        found.setdefault(one["figure"], {})[one["dtype"], one["passes"], one.get("tokens")] = points
    env = content["runs"][-1]
    written = []
    with plt.rc_context(RC):
        for figure, panels in found.items():
            draw = FIGURES.get(figure)
            if draw is None:
                continue
            drawn = draw(panels)
            drawn.text(0.5, 0.06 / drawn.get_figheight(), machine(env), ha="center", fontsize=7, color="#666666")
            for suffix in ("svg", "png"):
                target = path.with_name(f"{path.stem}_{figure}.{suffix}")
                # no date inside: the same figures give the same file
                drawn.savefig(target, dpi=80, metadata={"Date": None} if suffix == "svg" else None)
                written.append(target)
            plt.close(drawn)
    return written


def _sweep(panels):
    """One row a dtype: time of the forward, time of forward and backward, memory of forward and backward."""
    longest = max(panels, key=lambda panel: (len(panels[panel]), panel[2] or 0))  # then the one of most tokens
    tokens = longest[2]
    dtypes = [d for d in ("float32", "bfloat16") if any(k[0] == d and k[2] == tokens for k in panels)]
    columns = [("forward", "seconds"), ("forward+backward", "seconds"), ("forward+backward", "peak_bytes")]
    fig, grid = plt.subplots(len(dtypes), 3, figsize=(12, 0.9 + 3.3 * len(dtypes)), squeeze=False, sharex="row")
    for row, dtype in zip(grid, dtypes):
        for ax, (passes, what) in zip(row, columns):
            points = panels.get((dtype, passes, tokens))
            if points is None:
                ax.set_visible(False)
                continue
            one = next(iter(points.values()))["sysgen"]
            _lines(ax, points, what, LABELS if "num_experts" in one or one["x_name"] == "num_experts" else OPS)
            ax.set_title(f"{dtype}, {passes.replace('+', ' + ')}", fontsize=10)
            ax.set_ylabel("time (ms)" if what == "seconds" else "peak memory (MB)")
            ax.xaxis.set_tick_params(labelbottom=True)
            ax.set_xlabel(AXES[one["x_name"]])
    sizes = {"tokens": "tokens", "d_model": "d_model", "num_experts": "N_E", "expert_size": "G", "k": "K"}
    sizes |= {"batch": "B", "heads": "H", "width": "D"}
    fixed = ", ".join(f"{label} = {one[key]}" for key, label in sizes.items() if key in one)
    handles = {h.get_label(): h for ax in grid.flat for h in ax.lines}
    order = sorted(handles, key=lambda label: list(STYLES).index(NAMES.get(label, label)))
    layer = "Geometric attention" if one["figure"] == "geometric_attention" else "One MoE layer"
    fig.suptitle(f"{layer}: {fixed}", fontsize=11)
    fig.legend([handles[n] for n in order], order, ncols=4, **LEGEND)
    fig.tight_layout(rect=(0, 0.75 / fig.get_figheight(), 1, 1))
    return fig


def _lines(ax, points, what, labels):
    scale = 1e3 if what == "seconds" else 1e-6
    for name in dict.fromkeys(n for series in points.values() for n in series):
        measured = [(x, series[name][what] * scale) for x, series in points.items() if what in series.get(name, {})]
        if measured and (what == "seconds" or name != "numba prange"):  # NumPy's memory is not seen
            ax.plot(*zip(*measured), label=labels.get(name, name), **STYLES[name])
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(list(points), [str(x) for x in points])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _bars(panels):
    """Time of every way to compute a cvmm, relative to the one matrix product of the same size."""
    fig, grid = plt.subplots(1, len(panels), figsize=(12, 4.2), squeeze=False, sharey=True)
    for ax, ((_, passes, _), points) in zip(grid[0], panels.items()):
        names = [n for n in STYLES if n != "dense-equivalent" and any("ratio" in s.get(n, {}) for s in points.values())]
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            at = [j for j, s in enumerate(points.values()) if "ratio" in s.get(name, {})]
            ratios = [
                s[name]["ratio"] / s["dense-equivalent"]["ratio"] for s in points.values() if "ratio" in s.get(name, {})
            ]
            label = "sysgen.ops.cvmm" if name == "sysgen" else name
            bars = ax.bar(
                [j + (i + 0.5) * width - 0.4 for j in at], ratios, width, label=label, color=STYLES[name]["color"]
            )
            ax.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
        ax.axhline(1, color=STYLES["dense-equivalent"]["color"], linestyle="--", linewidth=1.4, zorder=0)
        ax.set_xticks(range(len(points)), [x.replace(" h=", "\nh=") for x in points], fontsize=8)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.grid(axis="x", visible=False)
        ax.set_title(f"float32, {passes.replace('+', ' + ')}")
    grid[0][0].set_ylabel("time / one product of equal FLOPs")
    fig.suptitle("CVMM: x [T, d] · W[expert] [d, h] for k of E experts a token", fontsize=11)
    handles, labels = grid[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=len(labels), **LEGEND)
    fig.tight_layout(rect=(0, 0.55 / fig.get_figheight(), 1, 1))
    return fig


FIGURES = {
    "geometric_attention": _sweep,
    "moe_layer_num_experts": _sweep,
    "moe_layer_expert_size": _sweep,
    "moe_layer_d_model": _sweep,
    "cvmm": _bars,
}


if __name__ == "__main__":
    source = Path(sys.argv[1])
    for target in plot_all(json.loads(source.read_text()), source):
        print(target)
