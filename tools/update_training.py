"""Writes the table of recorded training runs into docs/training.md, between its markers."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "training.md"
RESULTS = ROOT / "benchmarks" / "results" / "training"
BEGIN, END = "<!-- training:begin -->\n", "<!-- training:end -->"
OPTIONS = ("direction", "variant", "cutoff", "growth")
HEADER = "| run | steps | IID, test | OOD, test (last; best) | steps/s | device | date |\n" + "|---" * 7 + "|"


def row(path):
    """One line of the table for the ``result.json`` at ``path``."""
    result = json.loads(path.read_text())
    settings, test, where = result["settings"], result["test"], result["environment"]
    options = ", ".join(str(settings[name]) for name in OPTIONS if name in settings)
    name = f"[`{result['task']} {result['model']}`](../benchmarks/results/training/{path.parent.name})"
    scores = [f"{test[which]['ood']['accuracy']:.3f}" for which in ("last", "best")]
    return (
        f"| {name} {options}, seed {settings['seed']} | {result['step']:,} | {test['last']['iid']['accuracy']:.3f} "
        f"| {'; '.join(scores)} | {result['steps_per_second']:.0f} | {where['device_name']} | {where['date'][:10]} |"
    )


def table(folder=RESULTS):
    rows = [row(path) for path in sorted(folder.glob("*/result.json"))]
    return "\n".join([HEADER, *rows]) if rows else "No run is recorded yet."


def main():
    before, rest = PAGE.read_text().split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}{table()}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
