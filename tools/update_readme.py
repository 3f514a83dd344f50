"""Writes the README's figures and benchmark tables, between its markers, from the newest results of each device."""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from report import curves, machine, tables  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
HEADLINE = "moe_layer_num_experts"  # the figure at the README's top
FIGURES = {
    HEADLINE: "Time and peak memory against the number of experts (thesis Fig. 7.2)",
    "moe_layer_expert_size": "Time and peak memory against the width of an expert (thesis Fig. F.5)",
    "moe_layer_d_model": "Time and peak memory against the width of the model (thesis Fig. F.6)",
    "cvmm": "CVMM against one matrix product of the same FLOPs",
    "geometric_attention": "Geometric attention: time and peak memory against the number of positions",
}
# Calls whose overhead is to be small -> the reason why one of them is not.
OVERHEAD = {
    "route": "",
    "cvmm (routed)": "",
    "cvmm": "two operations, because it sorts first",
    "moe_ffn (routed)": "checks of the arguments take 8 µs, the registered operation 5, three allocations 3",
}
SHOWN = ("moe_layer_num_experts: float32", "cvmm", "overhead", "geometric_attention", "ndr_layer", "dnc")  # tables
PEERS = ("loop over experts", "sorted loop", "sort + grouped_mm")
HEADER = "| what | required | measured | |\n|---|---|---|---|"


class Target(NamedTuple):
    """A figure to reach. ``reason``: why it is missed, where the measurement itself tells."""

    what: str
    required: str
    measured: str
    met: bool
    reason: str = ""

    def line(self):
        verdict = "met" if self.met else f"**missed**{': ' + self.reason if self.reason else ''}"
        return f"| {self.what} | {self.required} | {self.measured} | {verdict} |"


def find(content, figure, **labels):
    """Points x -> series -> record of the curve with these labels, or an empty dict."""
    for points in curves(content["records"]):
        one = next(iter(next(iter(points.values())).values()))
        if one["figure"] == figure and all(one.get(k) == v for k, v in labels.items()):
            return points
    return {}


def targets(content):
    """What the CPU kernels must reach, as far as it was measured."""
    moe = [*_cvmm_targets(content), *_layer_targets(content), *_overhead_targets(content)]
    return [*moe, *_attention_targets(content)]


def _cvmm_targets(content):
    for x, p in find(content, "cvmm", passes="forward").items():
        time = 1 / p["dense-equivalent"]["ratio"]
        what = f"`cvmm` forward, {x}: time relative to one product of the same FLOPs"
        yield Target(what, "≤ 1.3×", f"{time:.2f}×", time <= 1.3)
    for x, p in find(content, "cvmm", passes="forward+backward").items():
        best = min((n for n in PEERS if "ratio" in p.get(n, {})), key=lambda n: p[n]["ratio"])
        ratio, limit = p[best]["ratio"], p["dense-equivalent"]["ratio"]
        what = f"`cvmm` forward + backward, {x}: times faster than the best peer ({best})"
        reason = (
            f"the peer takes {ratio / limit:.2f}× one product of the same FLOPs, `cvmm` {1 / limit:.2f}×; "
            f"1.5 times faster would be {ratio / limit / 1.5:.2f}×"
        )
        yield Target(what, "≥ 1.5×", f"{ratio:.2f}×", ratio >= 1.5, reason)
    errors = [r["error_over_bound"] for r in content["records"] if "error_over_bound" in r]
    if errors:
        what = "`cvmm`, float32: largest error relative to 4·√d·2⁻²⁴·Σ\\|x\\|\\|w\\|"
        yield Target(what, "≤ 1", f"{max(errors):.2f}", max(errors) <= 1)


def _layer_targets(content):
    for x, p in find(content, "moe_layer_4096", passes="forward+backward").items():
        dense, ours = p["dense MLP"], p["sysgen"]
        memory = ours["peak_bytes"] / dense["peak_bytes"]
        what = (
            f"σ-MoE forward + backward, {ours['tokens']} tokens, N_E = {x}, against the dense MLP of equal parameters: "
        )
        yield Target(what + "times faster", "≥ 4×", f"{dense['ratio']:.1f}×", dense["ratio"] >= 4)
        yield Target(what + "peak memory, gradients included", "≤ 0.25×", f"{memory:.2f}×", memory <= 0.25)


def _overhead_targets(content):
    for x, p in find(content, "overhead", passes="no gradient").items():
        if x in OVERHEAD:
            micro = p["sysgen"]["seconds"] * 1e6
            what = f"call of `{x}` on 16 elements, no gradient"
            yield Target(what, "≤ 12 µs", f"{micro:.1f} µs", micro <= 12, OVERHEAD[x])


def _attention_targets(content):
    regimes = {"geometric_attention": "scores N(0, 1)", "geometric_attention_unmatched": "scores N(-9, 1)"}
    for figure, scores in regimes.items():
        points = find(content, figure, dtype="float32", passes="forward+backward")
        for n in (512, 2048):
            if n not in points:
                continue
            ours, dense = points[n]["sysgen"], points[n]["dense eager"]
            what = f"geometric attention forward + backward, B·H=8, D=64, N={n}, {scores}, against the dense formula: "
            yield Target(what + "times faster", "≥ 3×", f"{dense['ratio']:.1f}×", dense["ratio"] >= 3)
            if n == 2048:
                memory = ours["peak_bytes"] / dense["peak_bytes"]
                yield Target(what + "peak memory", "≤ 0.1×", f"{memory:.3f}×", memory <= 0.1)
    sizes = [
        ("geometric_attention_routers", "dense eager", 4, "geometric attention forward + backward"),
        ("ndr_layer", "eager formulas", 1.5, "NDR layer forward + backward in training"),
    ]
    for figure, peer, required, what in sizes:
        for x, p in find(content, figure, passes="forward+backward").items():
            if x.startswith("CTL"):
                ratio = p[peer]["ratio"]
                floor = p.get("softmax (SDPA)", {}).get("ratio")
                reason = f"torch's fused softmax attention of this shape takes {floor:.2f}× our time" if floor else ""
                told = f"{what}, {x}: times faster than eager formulas"
                yield Target(told, f"≥ {required}×", f"{ratio:.2f}×", ratio >= required, reason)


def image(path, figure):
    """The Markdown of a figure beside a results file, or nothing."""
    svg = path.with_name(f"{path.stem}_{figure}.svg")
    return f"![{FIGURES[figure]}]({svg.relative_to(ROOT).as_posix()})" if svg.exists() else ""


def section(path):
    """The benchmark section for one results file."""
    content = json.loads(path.read_text())
    env = content["runs"][-1]
    parts = [f"Measured on {machine(env)}.", *(image(path, figure) for figure in FIGURES if figure != HEADLINE)]
    reached = targets(content) if env["device"] == "cpu" else []
    if reached:
        parts.append("\n".join([HEADER, *(t.line() for t in reached)]))
    shown = [t for t in tables(content["records"]) if t.title.startswith(SHOWN)]
    parts.extend(t.markdown() for t in shown)
    if env["device"] == "cpu":
        parts.append("Memory is that of tensors, exactly; scratch that a kernel takes past torch is not in it.")
    tables_file = path.with_suffix(".md").relative_to(ROOT).as_posix()
    parts.append(f"All tables: [{tables_file}]({tables_file}).")
    return "\n\n".join(filter(None, parts))


def newest():
    """The newest results file of each device."""
    found = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        found[path.parent.name] = path
    return list(found.values())


def between(text, name, content):
    """``text`` with ``content`` between the markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have one {begin} and one {end}")
    return text[: text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end) :]


def updated(readme):
    paths = newest()
    if not paths:
        raise ValueError(f"there are no results in {RESULTS}: run pytest benchmarks/ --benchmark-only")
    readme = between(readme, "figure", image(paths[0], HEADLINE))
    return between(readme, "benchmarks", "\n\n".join(section(p) for p in paths))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if the README is not current"
    )
    args = parser.parse_args()
    path = ROOT / "README.md"
    old = path.read_text()
    try:
        new = updated(old)
    except ValueError as error:
        return str(error)
    if args.check:
        return "README.md is not current: run python tools/update_readme.py" if new != old else 0
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
