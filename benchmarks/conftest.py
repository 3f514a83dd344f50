"""Options and fixtures of the benchmarks, and what is written when they end."""

import time
from pathlib import Path

import pytest
import report
import torch
from curve import Curve
from measure import environment, sync_timer

RESULTS = Path(__file__).parent / "results"


def pytest_addoption(parser):
    group = parser.getgroup("sysgen")
    group.addoption("--full", action="store_true", help="the papers' sizes (thesis Fig. 7.2: 32768 tokens)")
    group.addoption("--device", default=None, help="device to measure (default: cuda where there is one, else cpu)")
    group.addoption("--results", type=Path, default=RESULTS, metavar="DIR", help="where results are written")


def pytest_configure(config):
    config.curve_records = []
    name = config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config.curve_device = torch.device(name)
        torch.empty(1, device=config.curve_device)
    except (RuntimeError, AssertionError) as error:
        raise pytest.UsageError(f"--device {name}: {error}") from None


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=sync_timer, disable_gc=True))


@pytest.fixture
def device(request):
    return request.config.curve_device


@pytest.fixture
def tokens(request):
    """Number of tokens of the thesis' figures: as there, smaller, or only to see that everything runs."""
    if request.config.getoption("--full"):
        return 32768
    return 64 if request.config.getoption("benchmark_disable") else 2048


@pytest.fixture
def scaled(request):
    """Shrinks a number of tokens where nothing is measured."""
    return lambda n: n // 64 if request.config.getoption("benchmark_disable") else n


@pytest.fixture
def curve(request, benchmark, device):
    torch.manual_seed(0)
    return Curve(benchmark, device, request.config.curve_records)


def pytest_terminal_summary(terminalreporter, config):
    records = config.curve_records
    if not records:
        return
    env = environment(config.curve_device)
    terminalreporter.section("sysgen benchmarks")
    for table in report.tables(records):
        terminalreporter.write_line("")
        terminalreporter.write_line(table.title)
        for line in table.lines():
            terminalreporter.write_line(line)
    path = config.getoption("--results") / env["device"] / f"{time.strftime('%Y-%m-%d')}.json"
    merged = report.save(path, env, records)
    path.with_suffix(".md").write_text(report.as_markdown(merged))
    terminalreporter.write_line("")
    terminalreporter.write_line(f"results: {path}")
    try:
        from plot import plot_all
    except ImportError:
        terminalreporter.write_line("figures: none, matplotlib is not installed")
    else:
        for figure in plot_all(merged, path):
            terminalreporter.write_line(f"figure:  {figure}")
