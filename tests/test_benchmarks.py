"""What the benchmarks' figures rest on: exact memory, refusal of wrong results, and results that are kept."""

import sys
from pathlib import Path

import pytest
import torch

from sysgen._memory import peak_memory

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
sys.path.append(str(Path(__file__).parent.parent / "tools"))

import curve
import peers
import report
import update_performance


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
    """But for those of a point that was measured again: a series that is no longer there was measured beside others."""
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
    first.append({**first[1], "series": "gone"})
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


def test_the_performance_page_is_current():
    page = update_performance.PAGE.read_text()
    assert update_performance.updated(page) == page, "run python tools/update_performance.py"


def test_floors_of_the_performance_page():
    """Divided by hand: a product of 2 GFLOP beside one of 100 GFLOP/s; the thesis' shape on an H200."""
    record = {"figure": "f", "x_name": "n", "x": 3, "passes": "forward", "gflops": 50.0, "gb_s": 1.0, "seconds": 0.04}
    assert update_performance._cpu_line(record, 100e9) == "| f | n = 3 | forward | 2 | 40 | 20 | 40 | 2.00 |"
    up = update_performance.THESIS[0].projections()[0]
    # forward 17.18 GFLOP / 790e12 = 21.7 µs; its dX 34 + 4.2 + 134 MB, then 134 + 34 MB, of 4.3 TB/s: 79 µs
    assert update_performance._cuda_line(up).endswith("| 17.2 | 71, 4 | 22 | 79 | 22 |")
