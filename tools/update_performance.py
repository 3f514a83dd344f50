"""Writes the tables of docs/performance.md, between its markers: measured times of the CPU kernels beside their floors
from the newest results file, and calculated floors of the CUDA kernels on an H200.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

from moe_shapes import PROJECTIONS, THESIS, Ceilings  # noqa: E402
from report import machine  # noqa: E402
from update_readme import RESULTS, between  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
H200 = Ceilings(790e12, 4.3e12, 5.5e12)  # FLOP/s of bfloat16 products, bytes/s; rows from the L2 cache: assumed
FIGURES = (  # figure -> the sizes that are shown
    ("cvmm", None),
    ("moe_layer_4096", None),
    ("routing", (16, 16384)),
    ("geometric_attention", (512, 2048)),
    ("geometric_attention_unmatched", None),
    ("geometric_attention_routers", None),
    ("ndr_layer", None),
    ("dnc_sequence", None),
    ("dnc", None),
    ("ntm_sequence", None),
    ("ntm", None),
)
CPU_HEADER = "| benchmark | size | pass | GFLOP | MB | floor ms | measured ms | × floor |\n" + "|---" * 8 + "|"
CUDA_HEADER = (
    "| product | T, d → h, E, k | GFLOP | MB, weights among them | forward µs | dX µs | dW µs |\n" + "|---" * 7 + "|"
)


def rate(records, dtype):
    """FLOP/s of torch's own product of equal FLOPs, the fastest one of this dtype among the records."""
    return max(r["gflops"] * 1e9 for r in records if r["series"] == "dense-equivalent" and r["dtype"] == dtype)


def cpu_table(path):
    content = json.loads(path.read_text())
    records, lines = content["records"], [CPU_HEADER]
    ceiling = rate(records, "float32")
    for figure, sizes in FIGURES:
        for r in records:
            shown = r["figure"] == figure and (sizes is None or r["x"] in sizes) and r["dtype"] in ("float32", "int64")
            if shown and r["series"] == "sysgen" and "seconds" in r:
                lines.append(_cpu_line(r, ceiling))
    told = f"[{path.name}](../{path.relative_to(ROOT).as_posix()}): {machine(content['runs'][-1])}."
    return f"{told} Product of equal FLOPs, float32: {ceiling / 1e9:.0f} GFLOP/s.\n\n" + "\n".join(lines)


def _cpu_line(r, ceiling):
    """The FLOPs and bytes of a record are its rates times its time."""
    flops, moved = r["gflops"] * 1e9 * r["seconds"], r["gb_s"] * 1e9 * r["seconds"]
    floor = flops / ceiling
    size = str(r["x"]) if r["x_name"] == "shape" else f"{r['x_name']} = {r['x']}"
    size += f", {r['routes']} routes" if "routes" in r else ""
    columns = (
        r["figure"],
        size,
        r["passes"],
        f"{flops / 1e9:.3g}" if flops else "–",
        f"{moved / 1e6:.3g}",
        f"{floor * 1e3:.3g}" if floor else "–",
        f"{r['seconds'] * 1e3:.3g}",
        f"{r['seconds'] / floor:.2f}" if floor else "–",
    )
    return f"| {' | '.join(columns)} |"


def cuda_table():
    thesis = [p._replace(name=f"thesis {way}") for p, way in zip(THESIS[0].projections(), ("up", "down, weighted"))]
    return "\n".join([CUDA_HEADER, *(_cuda_line(p) for p in (*thesis, *PROJECTIONS))])


def _cuda_line(p):
    moved = sum(m for _, m, _ in p.traffic("forward")) * 2
    weights = p.num_experts * p.d * p.h * 2
    floors = (f"{H200.two_pass(p, passes, 2) * 1e6:.0f}" for passes in ("forward", "dX", "dW"))
    columns = (
        f"`{p.name}`",
        f"{p.tokens}, {p.d} → {p.h}, {p.num_experts}, {p.k}",
        f"{p.flops / 1e9:.1f}",
        f"{moved / 1e6:.0f}, {weights / 1e6:.0f}",
        *floors,
    )
    return f"| {' | '.join(columns)} |"


def updated(page):
    page = between(page, "cpu", cpu_table(max((RESULTS / "cpu").glob("*.json"))))
    return between(page, "cuda", cuda_table())


def main():
    PAGE.write_text(updated(PAGE.read_text()))


if __name__ == "__main__":
    sys.exit(main())
