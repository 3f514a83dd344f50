"""Writes the README's benchmark section, between its markers, from a results file in benchmarks/results/.

python tools/update_readme.py            the newest results of each device
python tools/update_readme.py --check    exit status 1 if the README is not current
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from report import curves, machine, tables  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
FIGURES = {
    "moe_layer_num_experts": "Time and peak memory against the number of experts (thesis Fig. 7.2)",
    "moe_layer_expert_size": "Time and peak memory against the width of an expert (thesis Fig. F.5)",
    "moe_layer_d_model": "Time and peak memory against the width of the model (thesis Fig. F.6)",
    "cvmm": "CVMM against one matrix product of the same FLOPs",
}
PEERS = ("loop over experts", "sorted loop", "sort + grouped_mm")
HEADER = "| what | required | measured | |\n|---|---|---|---|"


def verdict(met):
    return "met" if met else "**missed**"


def find(content, figure, **labels):
    """Points x -> series -> record of the curve with these labels, or an empty dict."""
    for points in curves(content["records"]):
        one = next(iter(next(iter(points.values())).values()))
        if one["figure"] == figure and all(one.get(k) == v for k, v in labels.items()):
            return points
    return {}


def targets(content):
    """Rows of the table of what the CPU kernels must reach."""
    rows = []
    for x, p in find(content, "cvmm", passes="forward").items():
        slower = 1 / p["dense-equivalent"]["ratio"]
        rows.append(
            (
                f"`cvmm` forward, {x}: time / that of one product of the same FLOPs",
                "≤ 1.3×",
                f"{slower:.2f}×",
                slower <= 1.3,
            )
        )
    for x, p in find(content, "cvmm", passes="forward+backward").items():
        best = min((n for n in PEERS if "ratio" in p.get(n, {})), key=lambda n: p[n]["ratio"])
        ratio = p[best]["ratio"]
        rows.append(
            (
                f"`cvmm` forward + backward, {x}: times faster than the best peer ({best})",
                "≥ 1.5×",
                f"{ratio:.2f}×",
                ratio >= 1.5,
            )
        )
    for x, p in find(content, "moe_layer_4096", passes="forward+backward").items():
        dense, ours = p["dense MLP"], p["sysgen"]
        share = ours["peak_bytes"] / dense["peak_bytes"]
        what = f"σ-MoE forward + backward, 4096 tokens, N_E = {x}, against the dense MLP of equal parameters: "
        rows.append((what + "times faster", "≥ 4×", f"{dense['ratio']:.1f}×", dense["ratio"] >= 4))
        rows.append((what + "peak memory, gradients included", "≤ 0.25×", f"{share:.2f}×", share <= 0.25))
    errors = [r["error_over_bound"] for r in content["records"] if "error_over_bound" in r]
    if errors:
        rows.append(
            (
                "`cvmm` in float32: largest error / (4·√d·2⁻²⁴·Σ\\|x\\|\\|w\\|)",
                "≤ 1",
                f"{max(errors):.2f}",
                max(errors) <= 1,
            )
        )
    for x, p in find(content, "overhead", passes="no gradient").items():
        if x != "torch linear":
            micro = p["sysgen"]["seconds"] * 1e6
            rows.append(
                (f"call overhead of `{x}`, 16 elements, no gradient", "≤ 12 µs", f"{micro:.1f} µs", micro <= 12)
            )
    return rows


def section(path):
    """The benchmark section for one results file, as Markdown."""
    content = json.loads(path.read_text())
    env = content["runs"][-1]
    parts = [f"Measured on {machine(env)}."]
    here = path.parent.relative_to(ROOT).as_posix()
    for figure, caption in FIGURES.items():
        if (path.parent / f"{path.stem}_{figure}.svg").exists():
            parts.append(f"![{caption}]({here}/{path.stem}_{figure}.svg)")
    rows = targets(content) if env["device"] == "cpu" else []
    if rows:
        lines = [f"| {what} | {required} | {measured} | {verdict(met)} |" for what, required, measured, met in rows]
        parts.append("\n".join([HEADER, *lines]))
        parts.extend(reasons(path))
    shown = [
        t
        for t in tables(content["records"])
        if t.title.startswith(("moe_layer_num_experts: float32", "cvmm", "overhead"))
    ]
    parts.extend(t.markdown() for t in shown)
    parts.append(f"All tables: [{here}/{path.stem}.md]({here}/{path.stem}.md).")
    return "\n\n".join(parts)


def reasons(path):
    """Why a figure is missed: what ``<date>_reasons.md`` beside the results says."""
    file = path.with_name(f"{path.stem}_reasons.md")
    return [file.read_text().strip()] if file.exists() else []


def newest():
    """The newest results file of each device."""
    found = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        found[path.parent.name] = path
    return list(found.values())


def updated(readme):
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n" + "\n\n".join(section(p) for p in newest()) + f"\n{END}{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if the README is not current"
    )
    args = parser.parse_args()
    path = ROOT / "README.md"
    old = path.read_text()
    if BEGIN not in old or END not in old:
        parser.error(f"{path} has no markers {BEGIN} and {END}")
    if not newest():
        parser.error(f"there are no results in {RESULTS}: run pytest benchmarks/ --benchmark-only")
    new = updated(old)
    if args.check:
        return "README.md is not current: run python tools/update_readme.py" if new != old else 0
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
