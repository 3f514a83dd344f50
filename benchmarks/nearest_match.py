"""Trains models of one layer on the nearest match and tests them on longer sequences.

Each position has a key, a value and a query token; its target is the value of the nearest other position whose key
equals its query, of the right one if two are as near. ``python benchmarks/nearest_match.py`` trains at N = 16, tests at
up to 32 times that, and writes log.jsonl, nearest_match.json and curves.svg to results/training/nearest-match-<date>/.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import environment
from torch import nn
from torch.nn import functional as F

import sysgen

KEYS, VALUES, WIDTH = 8, 8, 32
LENGTH, TEST_LENGTHS = 16, (16, 64, 256, 512)
RESULTS = Path(__file__).parent / "results" / "training"


class Geometric(nn.Module):
    """Geometric attention alone, without a residual connection."""

    def __init__(self):
        super().__init__()
        self.attention = sysgen.nn.GeometricMultiheadAttention(WIDTH, 1)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


MODELS = {
    "geometric attention": (Geometric, 1e-2),
    "NDR layer": (lambda: sysgen.nn.NDREncoderLayer(WIDTH, 1, 2 * WIDTH, dropout=0.0), 3e-3),
    "Transformer layer, relative": (
        lambda: sysgen.nn.TransformerEncoderLayer(WIDTH, 1, 2 * WIDTH, dropout=0.0, attention="relative"),
        3e-3,
    ),
}


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.tokens = nn.ModuleList(nn.Embedding(n, WIDTH) for n in (KEYS, VALUES, KEYS))
        self.layer = layer
        self.output = nn.Linear(WIDTH, VALUES)

    def forward(self, tokens):
        return self.output(self.layer(sum(embed(t) for embed, t in zip(self.tokens, tokens))))


def draw(batch, length, generator):
    """((key, value, query), target), each [batch, length]; target -100 where no position matches."""
    key, value, query = (torch.randint(n, (batch, length), generator=generator) for n in (KEYS, VALUES, KEYS))
    offset = torch.arange(length) - torch.arange(length)[:, None]
    rank = 2 * offset.abs() - (offset > 0).long()
    match = (key[:, None] == query[:, :, None]) & (offset != 0)
    best, where = rank.expand(match.shape).masked_fill(~match, 4 * length).min(-1)
    return (key, value, query), value.gather(1, where).masked_fill(best == 4 * length, -100)


@torch.no_grad()
def accuracy(model, length, generator):
    model.eval()
    tokens, target = draw(max(4, 4096 // length), length, generator)
    right = (model(tokens).argmax(-1) == target)[target >= 0]
    model.train()
    return right.float().mean().item()


def train(name, seed, steps, log):
    make, lr = MODELS[name]
    torch.manual_seed(seed)
    model = Model(make())
    optimizer = torch.optim.Adam(model.parameters(), lr)
    drawn, tested = (torch.Generator().manual_seed(seed + offset) for offset in (1, 10**6))
    started = time.perf_counter()
    for step in range(1, steps + 1):
        tokens, target = draw(64, LENGTH, drawn)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), target.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 20) == 0:
            scores = {str(n): accuracy(model, n, tested) for n in (LENGTH, TEST_LENGTHS[-1])}
            log.append({"model": name, "seed": seed, "step": step, "loss": loss.item(), "accuracy": scores})
            print(f"{name}, seed {seed}, step {step}: loss {loss.item():.3f}, accuracy {scores}", flush=True)
    scores = {str(n): accuracy(model, n, tested) for n in TEST_LENGTHS}
    parameters = sum(p.numel() for p in model.parameters())
    seconds = time.perf_counter() - started
    return {"model": name, "seed": seed, "lr": lr, "parameters": parameters, "seconds": seconds, "accuracy": scores}


def plot(log, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "sysgen", "axes.spines.top": False, "axes.spines.right": False})
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for ax, n in zip(axes, (LENGTH, TEST_LENGTHS[-1])):
        for i, name in enumerate(MODELS):
            for seed in sorted({r["seed"] for r in log}):
                points = [(r["step"], r["accuracy"][str(n)]) for r in log if (r["model"], r["seed"]) == (name, seed)]
                ax.plot(*zip(*points), color=f"C{i}", linewidth=1.2, label=name if seed == 0 else None)
        ax.set_title(f"N = {n}" + (" (as in training)" if n == LENGTH else ""))
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[1].legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / f"nearest-match-{time.strftime('%Y-%m-%d')}")
    arguments = parser.parse_args()
    log, results = [], []
    for name in MODELS:
        results += [train(name, seed, arguments.steps, log) for seed in range(arguments.seeds)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    content = {
        "environment": environment(torch.device("cpu")),
        "steps": arguments.steps,
        "batch": 64,
        "length": LENGTH,
        "results": results,
    }
    (arguments.output / "nearest_match.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(log, arguments.output / "curves.svg")


if __name__ == "__main__":
    main()
