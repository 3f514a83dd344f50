"""Writes the tables of recorded training runs into docs/training.md, between its markers, and draws the figures of runs
that belong together: the same task, other models and seeds.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "training.md"
RESULTS = ROOT / "benchmarks" / "results" / "training"
BEGIN, END = "<!-- training:begin -->\n", "<!-- training:end -->"
OPTIONS = ("direction", "variant", "cutoff", "growth")
HEADER = "| run | steps | IID, test | OOD, test (last; best) | steps/s | device | date |\n" + "|---" * 7 + "|"
BITS_HEADER = (
    "| runs | steps | training loss at the end | wrong bits a sequence, test | longer | without any wrong bit, test "
    "| longer | steps/s | device | date |\n" + "|---" * 10 + "|"
)


def row(folder, result):
    """One line of the table for a run with accuracies in and out of distribution."""
    settings, test, where = result["settings"], result["test"], result["environment"]
    options = ", ".join(str(settings[name]) for name in OPTIONS if name in settings)
    name = f"[`{result['task']} {result['model']}`](../benchmarks/results/training/{folder.name})"
    scores = [f"{test[which]['ood']['accuracy']:.3f}" for which in ("last", "best")]
    return (
        f"| {name} {options}, seed {settings['seed']} | {result['step']:,} | {test['last']['iid']['accuracy']:.3f} "
        f"| {'; '.join(scores)} | {result['steps_per_second']:.0f} | {where['device_name']} | {where['date'][:10]} |"
    )


def bits_row(runs):
    """One line for the runs of one model on one task of bits, a list of (folder, result); a number a seed."""
    runs = sorted(runs, key=lambda run: run[1]["settings"]["seed"])
    first = runs[0][1]

    def numbers(pick, digits):
        values = [pick(folder, result) for folder, result in runs]
        return "; ".join("–" if v is None else f"{v:.{digits}f}" for v in values)

    def score(split, name):
        return lambda folder, result: result["test"]["last"].get(split, {}).get(name)

    seeds = ", ".join(f"[{result['settings']['seed']}](../{_relative(folder)})" for folder, result in runs)
    columns = (
        f"`{first['task']} {first['model']}`, seeds {seeds}",
        f"{first['step']:,}",
        numbers(lambda folder, _: _final_loss(folder), 2),
        *(numbers(score(split, "wrong"), 2) for split in ("iid", "ood")),
        *(numbers(score(split, "accuracy"), 3) for split in ("iid", "ood")),
        numbers(lambda _, result: result["steps_per_second"], 0),
        first["environment"]["device_name"],
        first["environment"]["date"][:10],
    )
    return f"| {' | '.join(columns)} |"


def _relative(folder):
    return folder.relative_to(ROOT) if ROOT in folder.parents else folder


def _final_loss(folder):
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [e["train"]["loss"] for e in events if e["event"] == "evaluation"][-1]


def collect(folder):
    """(folder, result) of all recorded runs, and those on bits by (task, model)."""
    runs = [(path.parent, json.loads(path.read_text())) for path in sorted(folder.glob("*/result.json"))]
    others, bits = [], {}
    for run in runs:
        if run[1]["settings"]["architecture"] == "bits":
            bits.setdefault((run[1]["task"], run[1]["model"]), []).append(run)
        else:
            others.append(run)
    return others, dict(sorted(bits.items()))


def table(folder=RESULTS):
    others, bits = collect(folder)
    if not others and not bits:
        return "No run is recorded yet."
    parts = ["\n".join([HEADER, *(row(*run) for run in others)])] if others else []
    if bits:
        parts.append("\n".join([BITS_HEADER, *(bits_row(runs) for runs in bits.values())]))
    return "\n\n".join(parts)


def draw(folder=RESULTS):
    """``<task>.svg`` with the training losses of all models of a task on bits; the names of the files."""
    from sysgen.train import plot_runs

    by_task = {}
    for (task, model), runs in collect(folder)[1].items():
        by_task.setdefault(task, {})[model.upper()] = [run_folder for run_folder, _ in runs]
    for task, runs in by_task.items():
        plot_runs(runs, folder / task, title=task.replace("_", " "))
        (folder / f"{task}.png").unlink()  # the page shows the other one
    return [f"{task}.svg" for task in by_task]


def main():
    before, rest = PAGE.read_text().split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}{table()}\n{END}{after}")
    draw()


if __name__ == "__main__":
    sys.exit(main())
