"""``python -m sysgen.demo``: a byte-level language model with σ-MoE layers against the dense one of equal parameters.

Both are trained on the same batches, step by step in turn, so that loss, speed and memory can be compared.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ._memory import peak_memory
from .nn import SigmaMoE

CONTEXT, BATCH = 64, 32
D_MODEL, NUM_HEADS, NUM_LAYERS = 128, 4, 2
NUM_EXPERTS, EXPERT_SIZE, K = 16, 128, 4  # a quarter of the hidden units is active
GAMMA = 1e-3  # weight of the entropy regulariser, as in the thesis
LEARNING_RATE = 4e-3
MIN_BYTES = 20 * CONTEXT


class DenseMLP(nn.Module):
    """The dense layer with as many parameters as the mixture, its selection included, and the same initialisation."""

    def __init__(self):
        super().__init__()
        hidden = NUM_EXPERTS * EXPERT_SIZE + NUM_EXPERTS // 2
        self.up = nn.Linear(D_MODEL, hidden, bias=False)
        self.down = nn.Linear(hidden, D_MODEL, bias=False)
        scale = (2 / NUM_LAYERS) ** 0.5
        nn.init.normal_(self.up.weight, std=scale / D_MODEL**0.5)
        nn.init.normal_(self.down.weight, std=scale / hidden**0.5)

    def forward(self, x):
        return self.down(F.relu(self.up(x)))


def mixture():
    return SigmaMoE(D_MODEL, NUM_EXPERTS, EXPERT_SIZE, K, num_layers=NUM_LAYERS)


class Block(nn.Module):
    """Causal self-attention, then a feedforward layer; layer norm before each."""

    def __init__(self, feedforward):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)])
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False)
        self.out = nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.feedforward = feedforward

    def forward(self, x):
        """x [B, L, D] -> (the same shape, the layer's regulariser or 0)."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        h = self.norms[1](x)
        if isinstance(self.feedforward, SigmaMoE):
            y, aux = self.feedforward(h, return_aux=True)
        else:
            y, aux = self.feedforward(h), 0
        return x + y, aux


class LanguageModel(nn.Module):
    """Predicts each next byte: bytes [B, L] -> logits [B, L, 256] and the sum of the regularisers."""

    def __init__(self, feedforward):
        super().__init__()
        self.embedding = nn.Embedding(256, D_MODEL)
        self.position = nn.Parameter(torch.empty(CONTEXT, D_MODEL))
        for table in (self.embedding.weight, self.position):
            nn.init.normal_(table, std=0.1)
        self.blocks = nn.ModuleList([Block(feedforward()) for _ in range(NUM_LAYERS)])
        self.norm = nn.LayerNorm(D_MODEL)
        self.head = nn.Linear(D_MODEL, 256)

    def forward(self, text):
        x = self.embedding(text) + self.position
        aux = 0
        for block in self.blocks:
            x, a = block(x)
            aux = aux + a
        return self.head(self.norm(x)), aux


class Trainer:
    """One model with its optimiser and what was measured: (step, seconds, bits per byte) of the validation text."""

    def __init__(self, name, feedforward, steps, seed, device):
        torch.manual_seed(seed)
        self.name, self.device = name, device
        self.model = LanguageModel(feedforward).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1
        )
        self.num_parameters = sum(p.numel() for p in self.model.parameters())
        self.steps, self.seconds, self.curve = 0, 0.0, []
        self.peak_bytes = None

    def step(self, batch):
        """Trains on one batch [B, CONTEXT + 1]. The first one measures memory instead of time."""
        if self.peak_bytes is None:
            _, self.peak_bytes = peak_memory(lambda: self._gradients(batch), self.device)
        else:
            start = _now(self.device)
            self._gradients(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        if self.steps > 1:
            self.seconds += _now(self.device) - start

    def _gradients(self, batch):
        logits, aux = self.model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        (loss + GAMMA * aux).backward()

    @torch.no_grad()
    def validate(self, windows):
        """Bits per byte of windows [N, CONTEXT + 1]."""
        nats = [
            F.cross_entropy(self.model(w[:, :-1])[0].flatten(0, 1), w[:, 1:].flatten(), reduction="sum")
            for w in windows.split(BATCH)
        ]
        bits = float(sum(nats)) / (windows.shape[0] * CONTEXT) / math.log(2)
        self.curve.append((self.steps, self.seconds, bits))
        return bits

    @property
    def tokens_per_second(self):
        return (self.steps - 1) * BATCH * CONTEXT / self.seconds if self.seconds else float("nan")


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def expert_utilisation(model, windows):
    """Share of the selection weight that each expert gets, [layers, experts] (as in thesis Fig. 7.3)."""
    totals = torch.zeros(NUM_LAYERS, NUM_EXPERTS, dtype=torch.float64)

    def count(layer):
        def hook(module, args):
            experts, gate, _ = module.select(args[0])
            totals[layer].index_add_(0, experts.flatten().cpu(), gate.flatten().cpu().double())

        return hook

    hooks = [b.feedforward.register_forward_pre_hook(count(i)) for i, b in enumerate(model.blocks)]
    for w in windows.split(BATCH):
        model(w[:, :-1])
    for hook in hooks:
        hook.remove()
    return totals / totals.sum(1, keepdim=True)


def read_text(path):
    """The bytes of a file, or of Python's own language reference."""
    if path is None:
        from pydoc_data.topics import topics

        return "\n".join(topics.values()).encode(), "Python's language reference (pydoc_data.topics)"
    text = Path(path).read_bytes()
    if len(text) < MIN_BYTES:
        raise ValueError(f"{path} has {len(text)} bytes; at least {MIN_BYTES} are needed")
    return text, path


def unigram_bits(train, validation):
    """Bits per byte of the validation text under the byte frequencies of the training text."""
    frequencies = train.bincount(minlength=256).double() + 1
    return float(-(frequencies / frequencies.sum()).log2()[validation].mean())


def train(trainers, text, steps, seed, windows, progress):
    """Trains all on the same batches in turn. Returns whether it came to the end; Ctrl-C ends it early."""
    generator = torch.Generator().manual_seed(seed)
    every = max(1, steps // 10)
    try:
        for step in range(1, steps + 1):
            starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
            batch = text[starts + torch.arange(CONTEXT + 1)].to(windows.device)
            for t in trainers:
                t.step(batch)
            if step % every == 0 or step == steps:
                bits = [t.validate(windows) for t in trainers]
                progress.note("  ".join(f"{t.name} {b:.2f} bits/byte" for t, b in zip(trainers, bits)))
            progress.advance()
    except KeyboardInterrupt:
        return False
    finally:
        progress.close()
    return True


class Progress:
    """A tqdm bar, or lines of text where tqdm is not installed."""

    def __init__(self, steps):
        self.steps, self.done, self.bar = steps, 0, None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.bar = tqdm(total=steps, unit="step", leave=False)

    def advance(self):
        self.done += 1
        if self.bar is not None:
            self.bar.update()

    def note(self, text):
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            print(f"step {self.done + 1}/{self.steps}  {text}", flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()


def save_figure(path, dense, moe, shares):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (by_step, by_time, experts) = plt.subplots(1, 3, figsize=(12, 3.6))
    for t, color in ((dense, "black"), (moe, "#D55E00")):
        steps, seconds, bits = zip(*t.curve)
        by_step.plot(steps, bits, color=color, marker="o", label=t.name)
        by_time.plot(seconds, bits, color=color, marker="o", label=t.name)
    by_step.set(xlabel="step", ylabel="validation loss (bits/byte)", title="The same batches")
    by_time.set(xlabel="seconds of training", title="The same time")
    by_step.legend(frameon=False)
    for layer, share in enumerate(shares.tolist()):
        ranks = range(1, NUM_EXPERTS + 1)
        experts.plot(ranks, sorted(share, reverse=True), marker=".", drawstyle="steps-mid", label=f"layer {layer + 1}")
    experts.axhline(1 / NUM_EXPERTS, color="grey", linestyle="--", label="even")
    experts.set(xlabel="expert, by popularity", ylabel="share of the selection weight", title="Expert utilisation")
    experts.set_ylim(bottom=0)
    experts.legend(frameon=False)
    for ax in (by_step, by_time, experts):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def report(dense, moe, shares, baseline):
    print(f"\n{'':24}{'dense':>12}{'σ-MoE':>12}{'σ-MoE/dense':>14}")

    def row(what, form, a, b):
        print(f"{what:24}{a:12{form}}{b:12{form}}{b / a:13.2f}×")

    row("parameters", ",d", dense.num_parameters, moe.num_parameters)
    row("validation bits/byte", ".3f", dense.curve[-1][2], moe.curve[-1][2])
    row("tokens/s in training", ",.0f", dense.tokens_per_second, moe.tokens_per_second)
    row("peak memory, MB", ".1f", dense.peak_bytes / 1e6, moe.peak_bytes / 1e6)
    print(f"\nByte frequencies alone: {baseline:.3f} bits/byte. Memory: of forward and backward, gradients included.")
    for layer, share in enumerate(shares):
        used = int((share > 0.1 / NUM_EXPERTS).sum())
        effective = float((-(share * share.clamp(min=1e-12).log()).sum()).exp())
        print(
            f"Experts in layer {layer + 1}: {used} of {NUM_EXPERTS} in use (over a tenth of an even share), "
            f"as if {effective:.1f} were used evenly; shares {share.min():.1%} to {share.max():.1%}"
        )


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog="python -m sysgen.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--file", help="text to learn (default: the language reference that comes with Python)")
    parser.add_argument("--steps", type=int, default=250, help="training steps of each model (default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output", default="demo.png", help="figure to write (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    if not Path(args.output).resolve().parent.is_dir():
        parser.error(f"--output {args.output}: there is no such folder")
    try:
        args.device = torch.device(args.device)
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device: {str(error).splitlines()[0]}")
    if args.device.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu or cuda, got {args.device}")
    try:
        args.text, args.source = read_text(args.file)
    except (OSError, ValueError) as error:
        parser.error(f"--file: {error}")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    text = torch.frombuffer(bytearray(args.text), dtype=torch.uint8).long()
    split = len(text) - max(len(text) // 10, 2 * CONTEXT)
    training, held_out = text[:split], text[split:]
    # Evenly spaced windows of the last tenth, at most 64.
    count = min(64, (len(held_out) - 1) // CONTEXT)
    starts = torch.linspace(0, len(held_out) - CONTEXT - 1, count).long().unsqueeze(1)
    windows = held_out[starts + torch.arange(CONTEXT + 1)].to(args.device)

    dense = Trainer("dense", DenseMLP, args.steps, args.seed, args.device)
    moe = Trainer("σ-MoE", mixture, args.steps, args.seed, args.device)
    print(f"{args.source}: {len(text):,} bytes, the last {len(held_out):,} held out for validation")
    print(f"{NUM_LAYERS} layers, d_model {D_MODEL}; {dense.num_parameters:,} parameters each")
    print(f"dense: {NUM_EXPERTS * EXPERT_SIZE + NUM_EXPERTS // 2} hidden units, all active")
    print(f"σ-MoE: {NUM_EXPERTS} experts of {EXPERT_SIZE} hidden units, {K} active a token")
    finished = train([dense, moe], training, args.steps, args.seed, windows, Progress(args.steps))
    if moe.steps == 0:
        print("Stopped before the first step.")
        return 130
    if not finished:
        print(f"\nStopped after {moe.steps} of {args.steps} steps.")
        for t in (dense, moe):
            t.validate(windows)
    shares = expert_utilisation(moe.model, windows)
    report(dense, moe, shares, unigram_bits(training, held_out))
    try:
        save_figure(args.output, dense, moe, shares)
        print(f"\nFigure: {args.output}")
    except ImportError:
        print("\nNo figure: matplotlib is not installed (pip install matplotlib).")
    except (OSError, ValueError) as error:
        print(f"\nNo figure: {error}")
        return 1
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
