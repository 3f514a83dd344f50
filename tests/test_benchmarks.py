"""What the benchmarks' figures rest on: exact memory, refusal of wrong results, and results that are kept."""

import sys
from pathlib import Path

import pytest
import torch

from sysgen._memory import peak_memory

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import curve
import peers
import report


@pytest.mark.parametrize("n", [1000, 4099])
def test_peak_memory_is_exact(n, device):
    def step():
        a = torch.ones(n, 16, device=device)
        b = a * 2  # a and b
        del a
        return b.sum(1), b + b  # b, the sums, and the result

    (sums, doubled), peak = peak_memory(step, torch.device(device))
    assert sums.shape == (n,) and doubled.shape == (n, 16)
    rounding = 512 * 3 if device == "cuda" else 0  # the CUDA allocator's granularity
    assert 4 * n * 33 <= peak <= 4 * n * 33 + rounding


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_wrong_result_is_refused(wrong):
    expected = (torch.ones(5), torch.ones(7))
    result = [t.clone() for t in expected]
    curve._check("right", result, expected, (1e-6, 1e-6))
    result[wrong][3] += 0.1
    with pytest.raises(AssertionError, match="relative error"):
        curve._check("wrong", result, expected, (1e-6, 1e-6))


def test_results_measured_before_are_kept(tmp_path):
    point = {
        "figure": "f",
        "x_name": "n",
        "dtype": "float32",
        "passes": "forward",
        "series": "sysgen",
        "load": [0, 0, 0],
    }
    numbers = {"ratio": 1.0, "gflops": 1.0, "gb_s": 1.0, "peak_bytes": 8}
    first = [{**point, "x": x, "seconds": 1.0, **numbers} for x in (4, 8)]
    path = tmp_path / "cpu" / "today.json"
    report.save(path, {"run": "first"}, first)
    merged = report.save(path, {"run": "second"}, [{**point, "x": 8, "seconds": 2.0, **numbers}])
    assert [(r["x"], r["seconds"], r["run"]) for r in merged["records"]] == [(4, 1.0, 0), (8, 2.0, 1)]
    (table,) = report.tables(merged["records"])
    assert [row[:2] for row in table.rows] == [["4", "1e+03"], ["8", "2e+03"]]


@pytest.mark.parametrize("name", ["loop over experts", "sorted loop", "sort + grouped_mm"])
def test_peers_compute_the_same(name, device):
    import sysgen

    torch.manual_seed(0)
    if reason := peers.PEERS[name].unusable(torch.device(device), torch.float32, (8, 4)):
        pytest.skip(reason)
    x, gate = torch.randn(13, 8, device=device), torch.rand(13, 2, device=device)
    w_up, w_down = torch.randn(5, 8, 4, device=device), torch.randn(5, 4, 8, device=device)
    experts = torch.rand(13, 5, device=device).topk(2).indices
    experts[experts == 3] = 4  # one expert without tokens, and duplicates
    expected = sysgen.reference.moe_ffn(x, experts, gate, w_up, w_down)
    torch.testing.assert_close(peers.PEERS[name].ffn(x, experts, gate, w_up, w_down), expected)
