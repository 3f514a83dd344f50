"""Figures of what a model did: they show the numbers they are given."""

import sys

import pytest
import torch

from sysgen import nn

pytest.importorskip("matplotlib")
from sysgen.analysis import plot_memory_trace

T, B, N, W, R = 9, 3, 6, 4, 2


def traced(name, reads=R):
    torch.manual_seed(0)
    dnc = nn.DNC.variant(name, 5, 4, 8, N, W, reads)
    return dnc(torch.randn(T, B, 5), return_trace=True).trace


def images(figure):
    """Label -> the axes' image, of all axes that have a label."""
    figure.canvas.draw()
    return {ax.get_label(): ax.images[0] for ax in figure.axes if ax.images and ax.get_label()}


def shows(image, values):
    assert image.get_array().shape == values.shape
    torch.testing.assert_close(torch.tensor(image.get_array()), values, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dnc", "dnc-d", "dnc-m", "dnc-s", "dnc-md", "dnc-ms", "dnc-ds", "dnc-mds"])
def test_panels_show_the_trace(name):
    trace = traced(name)
    drawn = images(plot_memory_trace(trace, 1, title=name))
    masked = "m" in name[3:]
    for panel in ("write_weights", "write_content", "allocation", "usage", "retention", "precedence"):
        shows(drawn.pop(panel), trace[panel][:, 1])
    gates = [trace["write_gate"][:, 1, None], trace["allocation_gate"][:, 1, None], trace["free_gates"][:, 1]]
    shows(drawn.pop("gates"), torch.cat(gates, 1))
    for head in range(R):
        for panel in ["read_weights", "read_content", "forward", "backward", "read_mode"] + ["read_mask"] * masked:
            image = drawn.pop(f"{panel}/{head}")
            shows(image, trace[panel][:, 1, head])
            assert image.get_clim() == (0, 1) and image.origin == "lower"
    if masked:
        shows(drawn.pop("write_mask"), trace["write_mask"][:, 1])
    assert not drawn


def test_chosen_panels_heads_and_steps():
    trace = traced("dnc-mds")
    figure = plot_memory_trace(trace, panels=["read_mode", "forward"], heads=[1], length=5)
    drawn = images(figure)
    assert list(drawn) == ["forward/1", "read_mode/1"]
    shows(drawn["forward/1"], trace["forward"][:5, 0, 1])
    mode = next(ax for ax in figure.axes if ax.get_label() == "read_mode/1")
    assert [t.get_text() for t in mode.get_xticklabels()] == ["backward", "content", "forward"]
    assert list(images(plot_memory_trace(trace, panels="write_mask"))) == ["write_mask"]


def test_signals_go_to_the_right():
    x, y = torch.rand(T, 5), torch.rand(T, 3)
    drawn = images(plot_memory_trace(traced("dnc", 1), panels=[], signals={"input": x, "output": y}))
    assert list(drawn) == ["input", "output"]
    shows(drawn["input"], x.T)
    shows(drawn["output"], y.T)
    both = images(plot_memory_trace(traced("dnc", 1), signals={"input": x}, length=4))
    shows(both["input"], x[:4].T)
    assert both["forward/0"].get_array().shape == (4, N)


def test_a_figure_can_be_saved(tmp_path):
    plot_memory_trace(traced("dnc-mds")).savefig(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trace": []}, "trace must be the trace of a DNC, a dict, got list"),
        ({"trace": {}}, "has no 'write_weights'"),
        ({"sample": B}, r"sample must lie in \[0, 2\], got 3"),
        ({"sample": 1.0}, "sample must be an int, got 1.0"),
        ({"heads": [0, R]}, r"heads must lie in \[0, 1\], got 2"),
        ({"heads": 1}, "heads must be a list or None, got int"),
        ({"panels": 1}, "panels must be a list or None, got int"),
        ({"signals": [torch.zeros(T, 2)]}, "signals must be a dict or None, got list"),
        ({"length": 0}, r"length must lie in \[1, 9\], got 0"),
        ({"length": T + 1}, r"length must lie in \[1, 9\], got 10"),
        ({"panels": ["read_mask"]}, "panels must be some of .*, got 'read_mask'; the model has no masks"),
        ({"panels": ["link"]}, "panels must be some of .*, got 'link'$"),
        ({"panels": []}, "nothing to draw"),
        ({"signals": {"input": torch.zeros(T - 1, 2)}}, r"signals\['input'\] must have shape \[9, D\]"),
        ({"signals": {"input": [1.0]}}, r"signals\['input'\] must have shape .* got list"),
    ],
)
def test_errors_say_what_is_wrong(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        plot_memory_trace(**{"trace": traced("dnc-ds"), **arguments})


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'extra "analysis".*pip install'):
        plot_memory_trace(traced("dnc"))
