"""The training command: every task from the command line, its files, its messages, and that it repeats itself."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sysgen import train
from sysgen.train import checkpoint, log, loop
from sysgen.train.__main__ import main
from sysgen.train.data import Data, training_batches
from sysgen.train.models import build, objective_for
from sysgen.train.optimizer import make_optimizer
from sysgen.train.presets import TASKS
from sysgen.train.settings import resolve
from sysgen.train.steps import GraphStep, Step

# The smallest models and few steps: what is tested is the command, not what the models learn.
TINY = {"d_model": 16, "batch_size": 16, "steps": 4, "eval_every": 2}
TINY_ENCODER = {"nhead": 2, "dim_feedforward": 16, "num_layers": 2}
RUNS = {
    "ctl": ("ndr", {**TINY_ENCODER, "direction": "backward"}),
    "arithmetic": ("transformer-rel", {**TINY_ENCODER, "num_train": 200, "num_eval": 20}),
    "listops": ("bi-lstm", {"num_layers": 2, "embedding_dim": 8, "num_train": 200, "num_eval": 20}),
    "ctlpp": ("transformer", {**TINY_ENCODER, "num_train": 1000, "num_eval": 20}),
    "scan": ("universal-rel", TINY_ENCODER),
}


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """Evaluations and generated data of a size for tests."""
    from sysgen.train import evaluation

    monkeypatch.setattr(evaluation, "LARGEST_SPLIT", 64)


def flags(settings):
    return [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]


def command(task, model, output, settings, *more):
    return [task, "--model", model, "--output", str(output), "--quiet", *flags(settings), *more]


def lstm(output, *more, **settings):
    return command("ctl", "lstm", output, {**TINY, "embedding_dim": 4, **settings}, "--no-figures", *more)


def parameters(path):
    return torch.load(path, weights_only=True)["model"]


def same_parameters(a, b):
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("task", RUNS)
def test_every_task_from_the_command_line(task, tmp_path, capsys):
    model, settings = RUNS[task]
    assert main(command(task, model, tmp_path / "run", {**TINY, **settings}, "--no-figures")) == 0
    printed = capsys.readouterr().out
    assert "test, last checkpoint (step 4)" in printed and "ood" in printed
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished" and result["step"] == 4
    assert result["settings"]["d_model"] == 16 and result["settings"]["model"] == model
    assert 0 <= result["test"]["best"]["ood"]["accuracy"] <= 1


def test_the_dnc_from_the_command_line(tmp_path):
    settings = {**TINY, "embedding_dim": 4, "num_cells": 3, "num_reads": 1, "masked": "yes"}
    assert main(command("ctl", "dnc", tmp_path, settings, "--no-figures")) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "finished" and result["settings"]["num_cells"] == 3 and result["settings"]["masked"]


def test_log_and_result(tmp_path):
    """One header with everything that is needed to repeat the run, one object an evaluation, and the sums agree."""
    assert main(lstm(tmp_path, steps=5)) == 0
    events = log.read(tmp_path / "log.jsonl")
    assert [e["event"] for e in events] == ["header", "evaluation", "evaluation", "evaluation", "finished"]
    assert [e["step"] for e in events[1:]] == [2, 4, 5, 5]
    header = events[0]
    assert header["settings"]["lr"] == 1e-3 and header["settings"]["seed"] == 0
    for what in ("date", "device", "device_name", "torch", "python"):
        assert header["environment"][what]
    result = json.loads((tmp_path / "result.json").read_text())
    for evaluation in events[1:4]:
        for scores in evaluation["validation"].values():
            assert 0 <= scores["accuracy"] <= 1 and scores["loss"] > 0 and scores["count"] == 64
            assert scores["by_depth"] and all(0 <= a <= 1 for a in scores["by_depth"].values())
    watched = {e["step"]: e["validation"]["ood"]["accuracy"] for e in events[1:4]}
    best = max(watched, key=lambda step: (watched[step], step))  # of equally good ones the latest
    assert result["best"] == {"step": best, "accuracy": watched[best]}
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == best
    count = sum(p.numel() for p in parameters(tmp_path / "last.pt").values())
    assert result["parameters"] == header["parameters"] == count


def test_same_seed_same_run(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert main(lstm(tmp_path / name, seed=seed)) == 0
    assert same_parameters(tmp_path / "a" / "last.pt", tmp_path / "b" / "last.pt")
    assert not same_parameters(tmp_path / "a" / "last.pt", tmp_path / "c" / "last.pt")


def test_learns(tmp_path, monkeypatch):
    """The 88 applications of one function are learnt by heart: gradients, optimiser and accuracies are connected."""
    splits = {"train": "basic", "validation": dict.fromkeys(("iid", "ood"), "basic"), "test": {"ood": "basic"}}
    monkeypatch.setitem(TASKS, "ctl", {**TASKS["ctl"], **splits})
    settings = {"d_model": 64, "dropout": 0.0, "lr": 1e-2, "batch_size": 88, "steps": 120, "eval_every": 40}
    result = train.run("ctl", "lstm", output=tmp_path, figures=False, **settings)
    evaluations = [e for e in log.read(tmp_path / "log.jsonl") if e["event"] == "evaluation"]
    assert evaluations[0]["train"]["loss"] < 2.2  # chance is log 8 = 2.08
    assert evaluations[-1]["train"]["loss"] < 0.1 and evaluations[-1]["train"]["accuracy"] > 0.95
    assert result["test"]["last"]["ood"]["accuracy"] > 0.95
    assert result["best"]["accuracy"] > 0.95 and result["best"]["step"] > 40


@pytest.mark.parametrize(
    "task, model, expected",
    [("ctl", "ndr", {"curves", "attention", "gate"}), ("ctl", "act-transformer", {"curves", "attention", "halting"})],
)
def test_figures(task, model, expected, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(command(task, model, tmp_path, {**TINY, **TINY_ENCODER, "steps": 2})) == 0
    for name in expected:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()[:400]
    assert {p.stem for p in tmp_path.glob("*.svg")} == expected


@pytest.mark.parametrize("precision", ["amp", "bf16"])
def test_mixed_precision_on_the_cpu(precision, tmp_path):
    settings = {**TINY, **TINY_ENCODER, "precision": precision}
    assert main(command("ctl", "transformer", tmp_path, settings, "--no-figures")) == 0
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(v.dtype == torch.float32 for v in state["model"].values())
    assert bool(state["step_state"]["scaler"]) == (precision == "amp")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ctl", "--model", "lstn"], "no preset 'lstn'; known: lstm, bi-lstm"),
        (["ctl", "--model", "lstn"], "did you mean 'lstm'?"),
        (["ctl"], "--model is needed, one of lstm"),
        (["ctl", "--model", "lstm", "--lr", "-1"], "lr must be a number above 0, got -1.0"),
        (["ctl", "--model", "lstm", "--lr", "nan"], "lr must be a number above 0, got nan"),
        (["ctl", "--model", "lstm", "--dropout", "1.5"], "dropout must be a number in [0, 1), got 1.5"),
        (["ctl", "--model", "lstm", "--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["ctl", "--model", "lstm", "--nhead", "4"], "preset 'lstm' has no setting 'nhead'"),
        (["ctl", "--model", "transformer", "--nhead", "3"], "d_model = 128 is no multiple of nhead = 3"),
        (["ctl", "--model", "bi-lstm", "--d-model", "7"], "must be even"),
        (["ctl", "--model", "lstm", "--schedule", "noam"], "needs warmup"),
        (["ctl", "--model", "lstm", "--direction", "sideways"], "direction must be one of forward, backward"),
        (["ctl", "--model", "lstm", "--device", "nonsense"], "device 'nonsense' cannot be used"),
        (["ctl", "--model", "lstm", "--device", "meta"], "device must be cpu or cuda"),
        (["ctl", "--model", "lstm", "--time-limit", "0"], "time_limit must be above 0"),
        (["ctl", "--model", "lstm", "--checkpoint-every", "0"], "checkpoint_every must be"),
        (["ctl", "--model", "ndr", "--cuda-graphs"], "needs a CUDA device"),
        (["ctl", "--model", "lstm", "--cuda-graphs"], "is for encoders"),
        (
            ["ctl", "--model", "lstm", "--seed", "18446744073709551616"],
            "seed must be a whole number from 0 to 2^64 - 1",
        ),
        (["ctl", "--model", "lstm", "--more-depth-valid", "5"], "more_depth_valid must be a whole number from 1 to 4"),
        (["ctl", "--model", "ndr", "--gate-bias", "inf"], "gate_bias must be a finite number, got inf"),
        (
            ["scan", "--model", "transformer", "--cutoff", "1"],
            "with cutoff = 1, seed = 0 the split 'iid' of SCAN holds no",
        ),
        (["arithmetic", "--model", "lstm", "--num-train", str(10**15)], "no memory for 1000000000000000 samples"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, tmp_path, capsys):
    if "--output" not in arguments:
        arguments = [*arguments, "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nope"], "invalid choice: 'nope'"),
        ([], "required"),
        (["ctl", "--model", "lstm", "--lr", "fast"], "--lr: must be a number above 0, got 'fast'"),
        (["ctl", "--model", "lstm", "--bucketed", "perhaps"], "must be yes or no"),
        (["scan", "--model", "transformer", "--direction", "forward"], "unrecognized arguments"),
        (["ctl", "--model", "ndr", "--compile", "--cuda-graphs"], "not allowed with"),
    ],
)
def test_arguments_that_the_parser_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_output_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(lstm(tmp_path / "file")) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_unknown_settings_from_python():
    with pytest.raises(train.SettingsError, match="no setting 'learning_rate'"):
        train.run("ctl", "lstm", learning_rate=1)
    with pytest.raises(train.SettingsError, match=r"no task 'ctll'.*did you mean 'ctl'"):
        train.run("ctll", "lstm")
    for wrong, message in (
        ((None, "lstm"), "no task None"),
        (("ctl", None), "no preset None"),
        (("ctl", "lstm", {"device": None}), "device 'None' cannot be used"),
        (("ctl", "lstm", {"time_limit": "5"}), "time_limit must be above 0 seconds, got '5'"),
    ):
        with pytest.raises(train.SettingsError, match=message):
            train.run(*wrong[:2], **dict(*wrong[2:]))


def test_divergence_is_an_error_with_a_message(tmp_path, capsys):
    arguments = command("ctl", "lstm", tmp_path, {**TINY, "lr": 1e38, "steps": 20}, "--no-figures")
    assert main(arguments) == 1
    assert "no longer finite" in capsys.readouterr().err
    assert log.read(tmp_path / "log.jsonl")[-1]["event"] == "diverged"


@pytest.mark.parametrize("where", ["loss", "parameters"])
def test_checkpoints_are_finite(where, tmp_path, capsys, monkeypatch):
    """What is not finite replaces no checkpoint, neither the last nor the best, though nobody looks at the loss."""

    class Exploding(loop.Step):
        def __call__(self, batch, at):
            super().__call__(batch, at)
            if at == 2:
                if where == "loss":
                    self.totals[0] = float("nan")
                else:
                    next(iter(self.parameters)).data[0] = float("nan")

    monkeypatch.setattr(loop, "Step", Exploding)
    assert main(lstm(tmp_path, "--checkpoint-every=1", steps=9, eval_every=3)) == 1
    assert "no longer finite before step 3" in capsys.readouterr().err
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 2 and all(v.isfinite().all() for v in state["model"].values())
    assert not (tmp_path / "best.pt").exists()


def test_the_message_of_a_divergence_names_the_checkpoint(tmp_path, capsys, monkeypatch):
    """Also if evaluations were between."""

    class Exploding(loop.Step):
        def __call__(self, batch, at):
            super().__call__(batch, at)
            if at == 6:
                self.totals[0] = float("inf")

    monkeypatch.setattr(loop, "Step", Exploding)
    assert main(lstm(tmp_path / "a", "--checkpoint-every=3", steps=9, eval_every=2)) == 1
    assert "holds the checkpoint of step 6" in capsys.readouterr().err
    assert main(lstm(tmp_path / "b", "--checkpoint-every=9", steps=9, eval_every=2)) == 1
    assert "holds no checkpoint" in capsys.readouterr().err


def test_full_disk(tmp_path):
    """A message and not a traceback; the checkpoint before stays, and nothing half written."""
    resource = pytest.importorskip("resource")
    assert main(lstm(tmp_path)) == 0
    before = (tmp_path / "last.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path / "last.pt", {"x": torch.zeros(len(before))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_list_shows_every_preset(capsys):
    for task, presets in train.PRESETS.items():
        assert main([task, "--list"]) == 0
        printed = capsys.readouterr().out
        for name in presets:
            assert f"{task} {name}\n" in printed
    assert "not available yet" not in printed
    assert main(["ctl", "--model", "ndr", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "lr                  0.00015" in printed and "transformer" not in printed


@pytest.mark.parametrize("task, model", [("ctl", "ndr"), ("ctl", "act-transformer")])
def test_compiles_as_one_graph(task, model):
    """``--compile``: nothing in the model or the loss breaks the graph, and it is the same function."""
    settings = resolve(task, model, {"d_model": 16, **TINY_ENCODER})
    data = Data(settings)
    module, objective = build(settings, data.train).eval(), objective_for(settings)
    compiled = torch.compile(objective, fullgraph=True, backend="eager", dynamic=True)
    for indices in ([0, 1, 2], [5, 900, 1800, 4]):
        batch = data.train.batch(indices)
        loss, wrong, outputs = objective(module, batch)
        again = compiled(module, batch)
        torch.testing.assert_close(again[0], loss)
        assert torch.equal(again[1], wrong) and torch.equal(again[2], outputs)


def test_of_equally_good_checkpoints_the_latest_is_kept(tmp_path):
    assert main(lstm(tmp_path, lr=1e-12)) == 0  # nothing is learnt, so all evaluations agree
    accuracies = {e["validation"]["ood"]["accuracy"] for e in log.read(tmp_path / "log.jsonl") if "validation" in e}
    assert len(accuracies) == 1
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 4


def test_accuracy_of_sequences_is_that_of_greedy_decoding():
    """On a model that knows some of its training sequences and not others."""
    settings = resolve("scan", "universal", {"d_model": 32, **TINY_ENCODER, "dropout": 0.0})
    data = Data(settings)
    torch.manual_seed(0)
    model, objective = build(settings, data.train), objective_for(settings)
    batch = data.train.batch(torch.argsort(data.train.target_lengths, stable=True)[:64].tolist())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss, wrong, _ = objective(model, batch)
        if (wrong == 0).float().mean() > 0.4:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    right = objective(model, batch)[1] == 0
    assert 0 < right.sum() < len(right)
    tokens, lengths = model.generate(batch.tokens, batch.lengths, max_length=60)
    for i, (length, decoded) in enumerate(zip(batch.target_lengths.tolist(), lengths.tolist())):
        same = length == decoded and torch.equal(tokens[i, :length], batch.targets[i, :length])
        assert same == bool(right[i])


def recording_tool():
    """tools/update_training.py as a module."""
    tool = Path(__file__).resolve().parent.parent / "tools" / "update_training.py"
    if not tool.exists():
        pytest.skip("only in a checkout")
    spec = importlib.util.spec_from_file_location("update_training", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_recorded_runs(tmp_path):
    """The page's table is made from the files of a run."""
    module = recording_tool()
    assert module.table(tmp_path) == "No run is recorded yet."
    assert main(lstm(tmp_path / "ctl-lstm", seed=5)) == 0
    score = json.loads((tmp_path / "ctl-lstm" / "result.json").read_text())["test"]["last"]["iid"]["accuracy"]
    row = module.table(tmp_path).splitlines()[2]
    assert "`ctl lstm`" in row and "forward, seed 5 | 4 |" in row and f"| {score:.3f} |" in row


class ReplaysEagerly(GraphStep):
    """What surrounds a CUDA graph, on the CPU: the graph reads its buffers and writes the gradients and totals."""

    def capture(self, batch):
        buffers = batch._replace(**{k: v.clone() for k, v in batch._asdict().items() if v is not None})

        def replay():
            self.zero_gradients()
            self.forward_backward(buffers)

        return SimpleNamespace(replay=replay), buffers


def test_batches_of_graphs():
    """Every batch reaches its graph, incomplete ones none; gradients keep their storage; the result is that of Step."""
    settings = resolve("ctl", "ndr", {"d_model": 16, **TINY_ENCODER, "batch_size": 16, "dropout": 0.0})
    settings.update(attention_dropout=0.0, gate_dropout=0.0)
    data = Data(settings).split("basic")  # 88 samples: every sixth batch is incomplete
    trained = []
    for kind in (Step, ReplaysEagerly):
        torch.manual_seed(0)
        model = build(settings, data)
        step = kind(model, objective_for(settings), make_optimizer(model, settings), settings, torch.device("cpu"))
        batches = training_batches(data, settings, torch.device("cpu"))
        gradients = set()
        for i in range(8):
            step(next(batches), i)
            gradients.add(next(model.parameters()).grad.data_ptr())
        batches.close()
        trained.append((list(model.parameters()), step))
    for a, b in zip(trained[0][0], trained[1][0]):
        assert torch.equal(a, b)
    assert torch.equal(trained[0][1].totals, trained[1][1].totals)
    assert len(trained[1][1].graphs) == 1 and len(gradients) == 1


@pytest.mark.cuda
@pytest.mark.parametrize("more", [["--cuda-graphs"], ["--compile"], []], ids=["graphs", "compile", "eager"])
def test_on_a_gpu(more, tmp_path):
    """Interrupted and continued on a GPU, under AMP."""
    settings = {**TINY, **TINY_ENCODER, "steps": 20, "eval_every": 10, "device": "cuda"}
    assert main(command("ctl", "ndr", tmp_path, settings, "--no-figures", "--time-limit=1e-9", *more)) == 75
    assert main(command("ctl", "ndr", tmp_path, settings, "--no-figures", "--resume", *more)) == 0
    assert json.loads((tmp_path / "result.json").read_text())["settings"]["precision"] == "amp"
