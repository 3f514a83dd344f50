"""A run that was interrupted anywhere ends as the uninterrupted one: same parameters, log and result, to the bit."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_train import TINY, command, few_samples, flags, lstm, main, same_parameters  # noqa: F401

import sysgen
from sysgen import train
from sysgen.train import log, loop

TIMES = ("date", "seconds", "steps_per_second")


def history(output):
    """The evaluations without what depends on the clock."""
    events = [e for e in log.read(output / "log.jsonl") if e["event"] == "evaluation"]
    return [{k: v for k, v in e.items() if k not in TIMES} for e in events]


def outcome(output):
    result = json.loads((output / "result.json").read_text())
    return result["test"], result["best"]


def flat(value, name=""):
    """All leaves of a checkpoint by name, but the clock's."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() if key != "seconds" for k, v in flat(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def check_same(a, b):
    for name in ("last.pt", "best.pt"):
        one, other = (flat(torch.load(folder / name, weights_only=True)) for folder in (a, b))
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, f"{name}: {key}"
    assert history(a) == history(b)
    assert outcome(a) == outcome(b)


class StopsAt(train.Interruption):
    """Asks for a stop at the ``n``-th place where a run can stop: before each step and each batch of an evaluation."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def check(self, despite_limit=False):
        self.left -= 1
        if self.left < 0:
            self.request("test")
        super().check(despite_limit)


SETTINGS = {**TINY, "steps": 7, "eval_every": 3, "embedding_dim": 4}


def run(output, model="lstm", **kwargs):
    kwargs = {**SETTINGS, **kwargs}
    if model != "lstm":
        kwargs = {**{k: v for k, v in kwargs.items() if k != "embedding_dim"}, "nhead": 2, "num_layers": 2}
    return train.run("ctl", model, output=output, figures=False, **kwargs)


def test_stopped_everywhere(tmp_path):
    """Every place in turn; between 3 and 4, and 6 and 7 these are evaluations (one batch a split)."""
    run(tmp_path / "whole")
    places = 0
    for n in range(1, 100):
        output = tmp_path / f"stopped-{n}"
        first = run(output, interruption=StopsAt(n))
        if first["status"] == "finished":
            break
        assert first["status"] == "test" and not (output / "result.json").exists()
        assert run(output, resume=True)["status"] == "finished"
        check_same(tmp_path / "whole", output)
        places += 1
    assert places >= 7 + 2 * 3 + 3 - 1  # steps, batches of the three evaluations and of the final test


@pytest.mark.parametrize("model, precision", [("ndr", "fp32"), ("transformer", "amp")])
def test_stopped_again_and_again(model, precision, tmp_path):
    """Dropout, buckets, AMP's scale and AdamW's state go on where they were."""
    settings = {"model": model, "precision": precision, "bucketed": True, "batch_size": 16}
    run(tmp_path / "whole", **settings)
    statuses = []
    while len(statuses) < 10 and "finished" not in statuses:
        # 7: the final test, of the last checkpoint and of the best one if that is another, is not cut in pieces
        stop = StopsAt(7)
        statuses.append(run(tmp_path / "stopped", resume=True, interruption=stop, **settings)["status"])
    assert len(statuses) > 2 and statuses[-1] == "finished"
    check_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("step", [1, 3, 5])
def test_crashed(step, tmp_path, monkeypatch):
    """Without a chance to write anything a run goes on from its last checkpoint, and logs nothing twice."""

    class Crash(Exception):
        pass

    class Crashing(loop.Step):
        def __call__(self, batch, at):
            if at == step:
                raise Crash
            super().__call__(batch, at)

    run(tmp_path / "whole", checkpoint_every=2)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(loop, "Step", Crashing)
        run(tmp_path / "crashed", checkpoint_every=2)
    resumed = run(tmp_path / "crashed", resume=True, checkpoint_every=2)
    assert resumed["status"] == "finished"
    check_same(tmp_path / "whole", tmp_path / "crashed")


def test_longer_run(tmp_path):
    """``steps`` may grow."""
    run(tmp_path / "whole", steps=7)
    run(tmp_path / "grown", steps=4)
    run(tmp_path / "grown", steps=7, resume=True)
    assert same_parameters(tmp_path / "whole" / "last.pt", tmp_path / "grown" / "last.pt")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal(number, tmp_path):
    """The command itself: a signal in the middle ends it cleanly with a checkpoint; --resume finishes the same run."""
    settings = {**TINY, "embedding_dim": 4, "steps": 5000, "eval_every": 200}
    arguments = command("ctl", "lstm", tmp_path / "stopped", settings, "--no-figures")
    arguments.remove("--quiet")
    process = subprocess.Popen(
        [sys.executable, "-m", "sysgen.train", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(sysgen.__file__).resolve().parents[1])},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    for line in process.stderr:
        if "step    200" in line:
            break
    process.send_signal(number)
    printed, error = process.communicate()
    timer.cancel()
    assert process.returncode == 128 + number, error
    assert f"Stopped ({number.name})" in printed and "Traceback" not in error
    step = torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)["step"]
    assert 200 <= step < 5000
    events = log.read(tmp_path / "stopped" / "log.jsonl")
    assert events[-1]["event"] == "stopped" and events[-1]["step"] == step


def test_other_settings_are_refused(tmp_path, capsys):
    assert main(lstm(tmp_path)) == 0
    before = (tmp_path / "log.jsonl").read_text()
    assert main(lstm(tmp_path, "--resume", "--lr", "0.5", "--seed", "7")) == 2
    error = capsys.readouterr().err
    assert "lr: the run has 0.001, now 0.5 is asked for" in error and "seed: the run has 0, now 7" in error
    assert main(lstm(tmp_path, "--resume", "--steps", "3")) == 2
    assert "steps: the run has 4, now 3" in capsys.readouterr().err
    assert main(lstm(tmp_path)) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == before


def test_a_run_stays_on_its_device(tmp_path, capsys):
    assert main(lstm(tmp_path)) == 0
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["settings"]["device"] = "cuda"
    torch.save(content, tmp_path / "last.pt")
    assert main(lstm(tmp_path, "--resume", "--steps", "9")) == 2
    assert "device: the run has 'cuda', now 'cpu' is asked for" in capsys.readouterr().err


def test_damaged_checkpoint(tmp_path, capsys):
    assert main(lstm(tmp_path)) == 0
    content = (tmp_path / "last.pt").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"something else"):
        (tmp_path / "last.pt").write_bytes(damaged)
        assert main(lstm(tmp_path, "--resume")) == 2
        assert "is no readable checkpoint" in capsys.readouterr().err
    torch.save({"format": 99}, tmp_path / "last.pt")
    assert main(lstm(tmp_path, "--resume")) == 2
    assert "checkpoint format 99" in capsys.readouterr().err


def test_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    """A write that fails leaves the previous checkpoint."""
    run(tmp_path, steps=3)
    before = (tmp_path / "last.pt").read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path, steps=6, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_resume_without_a_run_starts_one(tmp_path):
    assert run(tmp_path / "new", resume=True)["status"] == "finished"


def test_finished_run_stays_as_it_is(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again["test"] == first["test"]
    assert [e["event"] for e in log.read(tmp_path / "log.jsonl")].count("finished") == 1


def test_time_limit(tmp_path):
    result = run(tmp_path, steps=100_000, eval_every=50_000, time_limit=1.0)
    assert result["status"] == "time limit" and 0 < result["step"] < 100_000
    # what has no steps left to do is not kept from its end
    run(tmp_path / "a", steps=3, eval_every=3)
    assert run(tmp_path / "a", steps=3, eval_every=3, resume=True, time_limit=1e-9)["status"] == "finished"
    assert main([*lstm(tmp_path / "b"), *flags({"time_limit": 1e-9})]) == 75


def test_two_runs_in_one_folder(tmp_path, capsys):
    """The second is refused while the first is at work, whatever it asks for, and disturbs nothing."""
    pytest.importorskip("fcntl")

    class Meanwhile(train.Interruption):
        refused = 0

        def check(self, despite_limit=False):
            with torch.random.fork_rng():  # which two processes do not share
                for more in ([], ["--resume"]):
                    assert main(lstm(tmp_path / "run", *more)) == 2
                    self.refused += "another run is at work" in capsys.readouterr().err

    meanwhile = Meanwhile()
    run(tmp_path / "alone")
    run(tmp_path / "run", interruption=meanwhile)
    assert meanwhile.refused > 0
    check_same(tmp_path / "alone", tmp_path / "run")
    assert run(tmp_path / "run", resume=True)["status"] == "finished"  # the end of a run opens its folder
