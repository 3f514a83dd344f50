"""The README's Python runs, one block after the other in one session, as a reader would type it."""

import re
from pathlib import Path

import torch

README = Path(__file__).resolve().parents[1] / "README.md"


def test_examples_run(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)  # compiling is tested elsewhere
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    # what the text leaves to the reader: weights of the mixture, and a batch for attention
    session = {"w_up": torch.randn(32, 512, 128), "w_down": torch.randn(32, 128, 512)}
    for block in blocks:
        exec(compile(block, README.name, "exec"), session)
        session["x"] = torch.randn(2, 7, 256) if "SigmaMoE" not in block else session["x"]
    assert session["state"].memory.isfinite().all()
