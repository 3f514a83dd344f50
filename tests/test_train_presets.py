"""Presets: every one builds with its released settings and has the number of parameters that these imply."""

from types import SimpleNamespace

import pytest
import torch

from sysgen import tasks
from sysgen.train import PRESETS
from sysgen.train.data import Data
from sysgen.train.models import build, objective_for
from sysgen.train.optimizer import learning_rate, make_optimizer
from sysgen.train.presets import TASKS
from sysgen.train.settings import resolve

# (tokens, classes) of the tasks, begin and end token not counted; of SCAN the words that go in and come out
SIZES = {"ctl": (19, 8), "arithmetic": (14, 10), "listops": (15, 10), "ctlpp": (40, 8), "scan": (13, 6)}
WORDS = 159  # of the 20 bAbI tasks


def dataset(task):
    """What :func:`build` asks a dataset for."""
    if "dataset" in TASKS[task] and issubclass(getattr(tasks, TASKS[task]["dataset"]), tasks.BitStream):
        return Data(resolve(task, "dnc")).train
    tokens, classes = SIZES.get(task, (WORDS, WORDS))
    return SimpleNamespace(num_tokens=tokens, num_classes=classes, output_vocabulary=range(classes))


def count(task, model):
    with torch.device("meta"):
        return sum(p.numel() for p in build(resolve(task, model, on_gpu=True), dataset(task)).parameters())


@pytest.mark.parametrize("task, model", [(t, m) for t, models in PRESETS.items() for m in models])
def test_every_preset_builds(task, model):
    settings = resolve(task, model, on_gpu=True)
    assert settings["steps"] >= 20_000 and objective_for(settings)
    assert count(task, model) > 0


def layer(d, ff):
    """W1, W2 with biases and two layer norms."""
    return 2 * d * ff + ff + d + 4 * d


def test_parameters_of_ndr():
    """CTL: query, key, value, output without bias; content bias, direction with bias, three scalars; feedforward, gate,
    norms; embedding with begin and end token; output. The released model has 256² more that nothing reads, 9 % of it.
    """
    d, ff = 256, 512
    attention = 4 * d * d + d + (2 * d + 2) + 3
    expected = attention + layer(d, ff) + 2 * (d * d + d) + 21 * d + (d * 8 + 8)
    assert count("ctl", "ndr") == expected
    assert round(d * d / (expected + d * d), 2) == 0.09


def test_parameters_of_table_e1():
    """By count of the released configurations (Csordás 2023, Table E.1 has 679 k for the first)."""
    assert round(count("ctlpp", "ndr") / 1e3) == 673
    assert round(count("ctlpp", "transformer") / 1e3) == 155


def test_parameters_of_the_lstm():
    tokens, embedding, hidden = 19 + 1, 16, 200  # an end token is added
    recurrent = 4 * hidden * (embedding + hidden + 2)
    assert count("ctl", "lstm") == tokens * embedding + recurrent + hidden * 8 + 8
    half = hidden // 2
    assert count("ctl", "bi-lstm") == tokens * embedding + 2 * 4 * half * (embedding + half + 2) + hidden * 8 + 8


def test_parameters_of_the_dnc():
    """One layer of 200 units, 4 heads that read words of 200, no masks; interface, the output in two parts, classes."""
    tokens, x, h, w, r = 19 + 1, 16, 200, 200, 4
    controller = 4 * h * (x + h + r * w + 1)
    interface = w * (3 + r) + 5 * r + 3 + 2 * r
    assert count("ctl", "dnc") == (
        tokens * x + controller + (h + 1) * interface + (h + 1) * h + r * w * h + (h * 8 + 8)
    )


@pytest.mark.parametrize(
    "task, x, y, h, w, r",
    [("copy", 9, 9, 32, 16, 1), ("key_value_2way", 18, 8, 32, 32, 1), ("babi", 256, WORDS, 256, 64, 4)],
)
def test_parameters_of_memory_models(task, x, y, h, w, r):
    """The interface grows with what a variant has: masks of the write and the R read heads, two sharpnesses a head."""
    words = WORDS * 256 if task == "babi" else 0
    rest = words + 4 * h * (x + h + r * w + 1) + (h + 1) * y + r * w * y
    interface = w * (3 + r) + 5 * r + 3
    assert count(task, "dnc") == count(task, "dnc-d") == rest + (h + 1) * interface
    assert count(task, "dnc-ms") == count(task, "dnc-mds") == rest + (h + 1) * (interface + w * (1 + r) + 2 * r)


def test_universal_models_share_one_layer():
    scan = {m: count("scan", m) for m in PRESETS["scan"]}
    assert scan["universal"] < scan["transformer"] < 3 * scan["universal"]
    assert scan["universal-rel"] < scan["transformer-rel"]


@pytest.mark.parametrize(
    "task, model, expected",
    [
        ("ctl", "ndr", dict(d_model=256, dim_feedforward=512, nhead=1, num_layers=14, lr=1.5e-4, weight_decay=0.01)),
        ("ctl", "transformer-abs-rel-gate", dict(dim_feedforward=1024, lr=2e-4, gate_dropout=0.0, readout="last")),
        ("ctl", "transformer", dict(d_model=128, dim_feedforward=256, nhead=4, num_layers=11, weight_decay=0.0025)),
        ("ctl", "lstm", dict(d_model=200, embedding_dim=16, batch_size=256, lr=1e-3, optimizer="adam", steps=20_000)),
        ("arithmetic", "ndr", dict(dim_feedforward=1024, nhead=4, num_layers=15, clip=1.0, steps=100_000)),
        ("arithmetic", "transformer", dict(readout="first", dropout=0.5, steps=200_000, bucketed=True)),
        ("arithmetic", "transformer-rel", dict(readout="first", attention_dropout=0.1, lr=1.5e-4, bucketed=True)),
        ("listops", "ndr", dict(d_model=512, nhead=16, num_layers=20, num_eval_layers=24, weight_decay=0.09, lr=2e-4)),
        ("listops", "transformer-abs-rel-gate", dict(dim_feedforward=2048, num_eval_layers=None)),
        ("ctlpp", "ndr", dict(num_layers=8, num_eval_layers=10, warmup=500, weight_decay=0.0, readout="first")),
        ("repeat_copy", "dnc-ds", dict(num_cells=16, word_size=16, hidden_size=32, dealloc=True, sharpen=True)),
        ("repeat_copy", "dnc", dict(optimizer="rmsprop", lr=1e-4, momentum=0.9, weight_decay=1e-5, clip=10.0)),
        ("repeat_copy", "dnc-m", dict(min_copies=2, max_copies=14, max_length=8, mask_min=0.0, sharpen=False)),
        ("associative_recall", "dnc-md", dict(num_cells=64, word_size=32, hidden_size=128, mask_min=0.1, masked=True)),
        ("babi", "dnc-mds", dict(num_cells=256, num_reads=4, embedding_dim=256, batch_size=2, steps=500_000)),
        ("scan", "universal", dict(d_model=128, nhead=8, num_layers=3, batch_size=256, lr=1e-3, clip=5.0)),
    ],
)  # fmt: skip
def test_released_settings(task, model, expected):
    settings = resolve(task, model, on_gpu=True)
    assert {k: settings[k] for k in expected} == expected


def test_precision_is_that_of_the_release_on_a_gpu_only():
    assert resolve("ctl", "ndr", on_gpu=True)["precision"] == "amp"
    assert resolve("ctl", "ndr")["precision"] == "fp32"
    assert resolve("ctl", "ndr", {"precision": "amp"})["precision"] == "amp"
    assert resolve("ctl", "transformer", on_gpu=True)["precision"] == "fp32"


def test_learning_rates():
    constant = {"schedule": "constant", "lr": 2.0, "warmup": 4}
    assert [learning_rate(constant, step) for step in (0, 1, 3, 4, 100)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert learning_rate({**constant, "warmup": 0}, 0) == 2.0
    # rises linearly to its largest value at the end of the warm-up, then falls with the root of the step
    noam = {"schedule": "noam", "lr": 0.9, "warmup": 100, "d_model": 16}
    peak = 0.9 * 16**-0.5 * 100**-0.5
    assert learning_rate(noam, 99) == pytest.approx(peak)
    assert learning_rate(noam, 49) == pytest.approx(peak / 2)
    assert learning_rate(noam, 399) == pytest.approx(peak / 2)


def test_groups_of_the_released_dnc():
    """Weights, biases and embeddings; only weights decay."""
    settings = resolve("babi", "dnc-mds")
    model = build(settings, dataset("babi"))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, settings)
    weights, biases, embeddings = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert embeddings == {"embedding.weight"}
    assert biases == {f"memory.{name}" for name in ("bias", "interface.bias", "output.bias")}
    assert len(weights) == 6 and weights | biases | embeddings == set(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-5, 0, 0]
    assert isinstance(optimizer, torch.optim.RMSprop) and optimizer.defaults["eps"] == 1e-10


def test_decay_acts_on_all_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = make_optimizer(model, {"optimizer": "adamw", "lr": 0.1, "weight_decay": 0.5})
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.5 and len(group["params"]) == 4
