"""Records of the benchmarks as a file and as tables.

A record is one series at one size: ``figure``, ``x_name`` and ``x`` say where it stands, ``dtype``, ``passes`` and the
sizes what was computed, ``seconds`` (median), ``fastest``, ``ratio`` (time relative to sysgen, median over rounds),
``peak_bytes``, ``saved_bytes``, ``gflops``, ``gb_s`` what came out, or ``skipped`` why nothing did.
"""

import json
from typing import NamedTuple

MEASURED = {"seconds", "fastest", "rounds", "ratio", "gflops", "gb_s", "peak_bytes", "load", "skipped", "run"}
MEASURED |= {"saved_bytes", "error_over_bound", "released_error", "floor", "over_floor"}


class Table(NamedTuple):
    title: str
    header: list
    rows: list
    notes: list

    def lines(self):
        """As aligned Markdown."""
        cells = [self.header, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.header))]
        lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(row, widths)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
        return lines + [n for note in self.notes for n in ("", note)]

    def markdown(self):
        return f"**{self.title}**\n\n" + "\n".join(self.lines())


def identity(record):
    """What tells two records apart, whenever they were measured."""
    return json.dumps({k: v for k, v in record.items() if k not in MEASURED}, sort_keys=True)


def curve_of(record):
    """What the points of one table or panel have in common."""
    return json.dumps({k: v for k, v in record.items() if k not in MEASURED | {"x", "series"}}, sort_keys=True)


def save(path, env, records):
    """Writes the records to ``path``. Of those that it holds already, all of a point that was measured again go: what
    stood beside it then is not comparable.

    Returns the content: ``{"runs": [environment, ...], "records": [...]}``.
    """
    old = json.loads(path.read_text()) if path.exists() else {"runs": [], "records": []}
    runs = old["runs"] + [env] if env not in old["runs"] else old["runs"]
    points = {(curve_of(r), r["x"]) for r in records}
    again = {identity(r) for r in records}
    kept = (r for r in old["records"] if (curve_of(r), r["x"]) not in points or identity(r) in again)
    merged = {identity(r): r for r in kept}
    for r in records:
        merged[identity(r)] = {**{k: _short(v) for k, v in r.items()}, "run": runs.index(env)}
    content = {"runs": runs, "records": list(merged.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(r) for r in content["records"])
    path.write_text(f'{{"runs": {json.dumps(runs)},\n"records": [\n{lines}\n]}}\n')
    return content


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def curves(records):
    """Records by curve, each a dict x -> series -> record, in the order in which they were measured."""
    found = {}
    for r in records:
        found.setdefault(curve_of(r), {}).setdefault(r["x"], {})[r["series"]] = r
    return [
        {x: points[x] for x in (sorted(points) if all(isinstance(x, int) for x in points) else points)}
        for points in found.values()
    ]


def tables(records):
    return [_table(points) for points in curves(records)]


def machine(env):
    """One line about where a run was measured."""
    where = env.get("gpu") or f"{env['cpu']}, {env['threads']} threads, {env['isa']} kernels"
    return f"{where}; torch {env['torch']}; {env['date']}"


def as_markdown(content):
    """All tables of a results file."""
    return "\n\n".join([machine(content["runs"][-1]), *(t.markdown() for t in tables(content["records"]))]) + "\n"


def _table(points):
    records = [r for series in points.values() for r in series.values()]
    one = records[0]
    known = {"figure", "x_name", "x", "series", "dtype", "passes"} | MEASURED
    sizes = ", ".join(f"{k} = {v}" for k, v in one.items() if k not in known)
    title = f"{one['figure']}: {one['dtype']}, {one['passes']}" + (f" ({sizes})" if sizes else "")
    if one["figure"] == "overhead":
        rows = [
            [x, f"{p['sysgen']['seconds'] * 1e6:.1f}", f"{p['sysgen']['fastest'] * 1e6:.1f}"] for x, p in points.items()
        ]
        return Table(title, [one["x_name"], "median µs", "fastest µs"], rows, [])
    names = list(dict.fromkeys(r["series"] for r in records))
    others = [n for n in names[1:] if any("seconds" in p.get(n, {}) for p in points.values())]
    floor = any("floor" in p["sysgen"] for p in points.values())
    saved = any("saved_bytes" in p["sysgen"] for p in points.values())
    header = [
        one["x_name"],
        "sysgen ms",
        "MB",
        *["saved MB"] * saved,
        "GFLOP/s",
        "GB/s",
        *["floor ms", "× floor"] * floor,
        *others,
    ]
    rows = [[str(x), *_row(p, others, saved, floor)] for x, p in points.items()]
    reasons = {(r["series"], r["skipped"]) for r in records if "skipped" in r}
    skipped = [f"{name} skipped: {reason}." for name, reason in sorted(reasons)]
    compared = "time / memory / memory saved for backward" if saved else "time / memory"
    return Table(title, header, rows, [" ".join([f"Others: {compared} relative to sysgen.", *skipped])])


def _row(series, others, saved, floor):
    ours = series["sysgen"]
    cells = [
        f"{ours['seconds'] * 1e3:.3g}",
        f"{ours['peak_bytes'] / 1e6:.3g}",
        *([f"{ours['saved_bytes'] / 1e6:.3g}" if "saved_bytes" in ours else "–"] if saved else []),
        f"{ours['gflops']:.3g}",
        f"{ours['gb_s']:.3g}",
    ]
    if floor:
        cells += [f"{ours['floor'] * 1e3:.3g}", f"{ours['over_floor']:.2f}"]
    for name in others:
        r = series.get(name, {})
        if "seconds" not in r:
            cells.append("–")
        elif ours["peak_bytes"]:
            cells.append(f"{r['ratio']:.2f}× / {r['peak_bytes'] / ours['peak_bytes']:.2f}×")
            if "saved_bytes" in r and "saved_bytes" in ours:
                cells[-1] += f" / {r['saved_bytes'] / ours['saved_bytes']:.2f}×"
        else:
            cells.append(f"{r['ratio']:.2f}×")
    return cells
