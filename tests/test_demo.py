"""The demo runs, compares models of equal size, and says what is wrong with its arguments."""

import random

import pytest
import torch

from sysgen import demo


@pytest.fixture
def text(tmp_path):
    words = ["the ", "a ", "kernel ", "expert ", "token ", "routes ", "learns "]
    path = tmp_path / "text"
    path.write_text("".join(random.Random(0).choices(words, k=2000)))
    return path


def test_runs_to_a_figure(text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "demo.png"
    assert demo.main(["--file", str(text), "--steps", "3", "--device", "cpu", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    for what in ("parameters", "bits/byte", "tokens/s", "peak memory", "Experts in layer 2"):
        assert what in printed
    assert output.read_bytes().startswith(b"\x89PNG")


def test_models_have_equally_many_parameters():
    dense, moe = (demo.LanguageModel(f) for f in (demo.DenseMLP, demo.mixture))
    assert sum(p.numel() for p in dense.parameters()) == sum(p.numel() for p in moe.parameters())


def test_no_byte_sees_the_future():
    torch.manual_seed(0)
    model = demo.LanguageModel(demo.mixture)
    text = torch.randint(256, (1, demo.CONTEXT))
    changed = text.clone()
    changed[0, 40:] = (changed[0, 40:] + 1) % 256
    before, after = model(text)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_interrupted_early_reports_what_it_has(text, tmp_path, capsys, monkeypatch):
    class Interrupting(demo.Progress):
        def advance(self):
            super().advance()
            if self.done == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(demo, "Progress", Interrupting)
    assert (
        demo.main(["--file", str(text), "--steps", "50", "--device", "cpu", "--output", str(tmp_path / "f.png")]) == 130
    )
    printed = capsys.readouterr().out
    assert "Stopped after 2 of 50 steps" in printed and "bits/byte" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--file", "no/such/file"], "No such file"),
        (["--steps", "0"], "at least 1"),
        (["--device", "nonsense"], "--device"),
        (["--output", "no/such/folder/demo.png"], "no such folder"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"too short"])
def test_too_little_text(content, tmp_path, capsys):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        demo.main(["--file", str(path)])
    assert f"has {len(content)} bytes" in capsys.readouterr().err
